// weight_one: how the readers of quant/ see the only matrix of an operation, its binding `weight`.

fn load_word(at: u32) -> u32 {
    return weight[at];
}

fn row_words() -> u32 {
    return params.row_words;
}

fn tail_start() -> u32 {
    return params.tail_at;
}

fn tail_words() -> u32 {
    return params.tail_words;
}

fn read_unit(row: u32, index: u32) -> Unit {
    return read_first(row, index);
}

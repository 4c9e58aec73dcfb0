// weight_one: how the readers of quant/ see the only matrix of an operation, its binding `weight`.

fn load_word(at: u32) -> u32 {
    return weight[at];
}

fn tail_start() -> u32 {
    return params.tail_at;
}

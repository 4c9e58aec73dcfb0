// input_plain: the row of x a product of one token reads, as it is.

// Nothing: every lane of a workgroup of 256 calls it once, in uniform control flow, before `load_input`.
fn prepare_input(thread: u32) {}

// Columns `column` .. `column + 4` of the row of x that starts at element `base`.
fn load_input(base: u32, column: u32) -> vec4<f32> {
    return load_x(base, column);
}

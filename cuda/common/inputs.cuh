// The head of the step's input buffer. Layout of the rest: backends/cuda/src/inputs.rs; kernels get the address of
// each field in their arguments.
#pragma once
#include "common/types.cuh"

// What the step really holds; everything beyond is padding that kernels must not touch.
struct StepCounts {
    u32 tokens;
    u32 rows;
    u32 sequences;
    u32 reserved;
};

#define NO_SLOT 0xffffffffu
#define NO_BLOCK 0xffffffffu
#define NO_TOKEN 0xffffffffu

//! Where each value of a program lives: one arena, planned by liveness, the same on every backend.
//!
//! Values whose lifetimes overlap never share bytes; declared outputs live to the end of the step. Offsets are
//! multiples of 256 bytes, the strictest binding alignment any device asks for.

use crate::program::{Program, ValueId};

/// Alignment of every value, in bytes.
pub const ALIGNMENT: usize = 256;

/// Offsets of every value in the activation arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaPlan {
    /// Byte offset of each value, by [`ValueId`].
    pub offsets: Vec<usize>,
    /// Size of the arena in bytes.
    pub bytes: usize,
}

impl ArenaPlan {
    /// Offset of one value.
    pub fn offset(&self, id: ValueId) -> usize {
        self.offsets[id.0 as usize]
    }
}

struct Lifetime {
    first: usize,
    last: usize,
    bytes: usize,
}

/// Plans the arena: values in order of birth, each at the lowest offset free for its whole life.
pub fn plan(program: &Program) -> ArenaPlan {
    plan_keeping(program, &|node| node)
}

/// The same for a backend that runs some nodes as one: what node `n` reads keeps its place until node `until(n)` has ended, so
/// that nothing written by then lies there.
pub fn plan_keeping(program: &Program, until: &dyn Fn(usize) -> usize) -> ArenaPlan {
    let lifetimes = lifetimes(program, until);
    let mut offsets = vec![0; lifetimes.len()];
    let mut total = 0;
    for id in 0..lifetimes.len() {
        let life = &lifetimes[id];
        let mut taken: Vec<(usize, usize)> = (0..id)
            .filter(|&other| lifetimes[other].first <= life.last && life.first <= lifetimes[other].last)
            .map(|other| (offsets[other], offsets[other] + lifetimes[other].bytes))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if offset + life.bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        offsets[id] = offset;
        total = total.max(offset + life.bytes);
    }
    ArenaPlan { offsets, bytes: total }
}

fn lifetimes(program: &Program, until: &dyn Fn(usize) -> usize) -> Vec<Lifetime> {
    let end = program.nodes().len();
    let mut lifetimes: Vec<Lifetime> = program
        .values()
        .iter()
        .map(|value| Lifetime {
            first: end,
            last: 0,
            bytes: value.bytes(program.shape()).next_multiple_of(ALIGNMENT),
        })
        .collect();
    for (index, node) in program.nodes().iter().enumerate() {
        for output in &node.outputs {
            let life = &mut lifetimes[output.0 as usize];
            (life.first, life.last) = (index, index);
        }
        for read in node.op.reads() {
            let life = &mut lifetimes[read.0 as usize];
            life.last = life.last.max(until(index));
        }
    }
    for output in program.outputs() {
        lifetimes[output.0 as usize].last = end;
    }
    lifetimes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::program::ProgramBuilder;
    use crate::step::StepShape;
    use crate::weight::{WeightId, WeightSpec};

    #[test]
    fn arena_reuses_dead_values_and_never_overlaps_live_ones() {
        let weights = [WeightSpec::matrix("table", DType::F32, 10, 100)];
        let shape = StepShape { tokens: 3, rows: 1, sequences: 1 };
        let mut builder = ProgramBuilder::new("chain", shape, &weights);
        let mut value = builder.embed("start", WeightId(0)).unwrap();
        let start = value;
        for step in 0..8 {
            value = builder.gelu(format!("gelu.{step}"), value).unwrap();
        }
        let sum = builder.add("sum", value, start).unwrap();
        builder.output(sum);
        let program = builder.finish();
        let plan = plan(&program);
        let one = (3 * 100 * 4_usize).next_multiple_of(ALIGNMENT);
        // The start value lives throughout; the chain needs two more places.
        assert_eq!(plan.bytes, 3 * one);
        assert!(plan.offsets.iter().all(|offset| offset % ALIGNMENT == 0));
        // With everything read until the next node has ended, it needs three.
        assert_eq!(plan_keeping(&program, &|node| node + 1).bytes, 4 * one);
        let tapped = program.tapped();
        assert_eq!(super::plan(&tapped).bytes, tapped.values().len() * one);
    }

    #[test]
    fn no_two_live_values_of_any_case_overlap() {
        for case in crate::conformance::cases().unwrap() {
            for step in &case.steps {
                let program = &step.program;
                let (plan, lives) = (plan(program), lifetimes(program, &|node| node));
                for (a, left) in lives.iter().enumerate() {
                    assert!(plan.offsets[a] + left.bytes <= plan.bytes);
                    for (b, right) in lives.iter().enumerate().skip(a + 1) {
                        let together = left.first <= right.last && right.first <= left.last;
                        let apart = plan.offsets[a] + left.bytes <= plan.offsets[b]
                            || plan.offsets[b] + right.bytes <= plan.offsets[a];
                        assert!(!together || apart, "{}: values {a} and {b}", case.name);
                    }
                }
            }
        }
    }
}

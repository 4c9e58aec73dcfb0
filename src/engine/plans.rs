//! The compiled plans: every step shape with every head, chosen by the number of tokens.

use worker_orcd_core::{
    Backend, BackendError, KvLayout, NO_BLOCK, NO_SLOT, NO_TOKEN, PlanId, Program, SampleRow, StepInputs,
    StepOutputs,
};

use super::config::EngineConfig;
use crate::model::{Recorder, StepHead};

/// Who chooses the tokens of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chooser {
    /// Logits are read back.
    Host,
    /// Only token ids are read back.
    Device,
}

/// Records a program for each head and shape: all that read logits back, then all that choose on the device.
pub(super) fn record(recorder: &dyn Recorder, config: &EngineConfig) -> Result<Vec<Program>, BackendError> {
    let chooser = StepHead::Sample { max_penalty_tokens: config.max_penalty_tokens };
    let heads = std::iter::once(StepHead::Logits).chain((!config.host_sampling).then_some(chooser));
    let shapes = config.step_shapes();
    heads
        .flat_map(|head| shapes.iter().map(move |&shape| (head, shape)))
        .map(|(head, shape)| recorder.record(shape, head))
        .collect()
}

/// Plans of one head, by ascending number of tokens, and room for the outputs of the largest.
#[derive(Debug)]
struct Ladder {
    plans: Vec<(usize, PlanId)>,
    outputs: StepOutputs,
}

/// Every plan of the engine.
#[derive(Debug)]
pub(super) struct Plans {
    host: Ladder,
    device: Option<Ladder>,
}

impl Plans {
    /// Records and compiles a plan for each shape and head, in one go, so that they share one arena.
    pub(super) fn compile(
        backend: &mut dyn Backend,
        recorder: &dyn Recorder,
        config: &EngineConfig,
    ) -> Result<Self, BackendError> {
        let shapes = config.step_shapes();
        let programs = record(recorder, config)?;
        let ids = backend.compile(&programs)?;
        if ids.len() != programs.len() {
            let reason = format!("{} plans for {} programs", ids.len(), programs.len());
            return Err(BackendError::Execution { label: "compile".into(), reason });
        }
        let ladder = |head: usize| -> Option<Ladder> {
            let range = head * shapes.len()..(head + 1) * shapes.len();
            let largest = programs.get(range.clone())?.last()?;
            let plans = shapes.iter().zip(&ids[range]).map(|(shape, &id)| (shape.tokens, id)).collect();
            Some(Ladder { plans, outputs: StepOutputs::for_program(largest) })
        };
        let host = ladder(0).unwrap_or_else(|| Ladder { plans: vec![], outputs: StepOutputs::default() });
        Ok(Self { host, device: ladder(1) })
    }

    /// Whether the device can choose tokens at all.
    pub(super) const fn has_device_chooser(&self) -> bool {
        self.device.is_some()
    }

    /// Runs every plan once on a token that goes nowhere: it has no slot, and what it sees is whatever block 0 holds.
    pub(super) fn warm_up(
        &mut self,
        backend: &mut dyn Backend,
        layout: &KvLayout,
        max_penalty_tokens: usize,
    ) -> Result<(), BackendError> {
        let table = |group: &worker_orcd_core::KvGroup| {
            let mut row = vec![NO_BLOCK; group.max_blocks_per_sequence];
            row.iter_mut().take(1).for_each(|block| *block = 0);
            row
        };
        let tables: Vec<Vec<u32>> = layout.groups.iter().map(table).collect();
        let penalty_tokens = vec![NO_TOKEN; max_penalty_tokens];
        let inputs = StepInputs {
            tokens: &[0],
            positions: &[0],
            sequences: &[0],
            slots: &vec![&[NO_SLOT][..]; layout.groups.len()],
            block_tables: &tables.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            out_rows: &[0],
            sampling: &[SampleRow::GREEDY],
            penalty_tokens: &[],
        };
        let ladders = [(Some(&mut self.host), &[][..]), (self.device.as_mut(), &penalty_tokens)];
        for (ladder, penalty_tokens) in ladders {
            let Some(Ladder { plans, outputs }) = ladder else { continue };
            for &(_, plan) in &*plans {
                backend.submit(plan, &StepInputs { penalty_tokens, ..inputs })?;
                backend.wait(outputs)?;
            }
        }
        Ok(())
    }

    /// The smallest plan with room for `tokens`.
    pub(super) fn choose(&mut self, chooser: Chooser, tokens: usize) -> Option<PlanId> {
        let plans = &self.ladder(chooser).plans;
        plans.iter().find(|(most, _)| *most >= tokens).map(|&(_, plan)| plan)
    }

    /// Where the outputs of a step go; as declared by its plan.
    pub(super) fn outputs(&mut self, chooser: Chooser) -> &mut StepOutputs {
        &mut self.ladder(chooser).outputs
    }

    fn ladder(&mut self, chooser: Chooser) -> &mut Ladder {
        match (chooser, &mut self.device) {
            (Chooser::Device, Some(device)) => device,
            _ => &mut self.host,
        }
    }
}

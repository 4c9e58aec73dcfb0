//! Time per part of a plan: timestamps around each part's own pass where the device has them, else a clock around its own
//! submission. Its query buffers are made for the call; serving never profiles.

use std::time::Instant;

use wgpu::BufferUsages as Use;
use worker_orcd_core::{BackendError, PlanProfile, ProfileEntry};

use crate::gpu::{Gpu, Purpose};
use crate::plan::{Command, Plan, encode, execution};

/// Most queries a set may hold: two per part.
const MAX_QUERIES: usize = wgpu::QUERY_SET_MAX_QUERIES as usize;

/// Runs the parts of `plan` behind what `encoder` already holds, each timed by itself.
pub(crate) fn run(
    gpu: &Gpu,
    plan: &Plan,
    encoder: wgpu::CommandEncoder,
) -> Result<PlanProfile, BackendError> {
    let parts = &plan.parts;
    let times = if gpu.timestamps && parts.len() * 2 <= MAX_QUERIES && !parts.is_empty() {
        by_timestamps(gpu, plan, encoder)?
    } else {
        by_clock(gpu, plan, encoder)?
    };
    let entries = parts.iter().zip(times);
    let entries = entries.map(|(label, time_us)| ProfileEntry { label: label.clone(), time_us });
    Ok(PlanProfile { entries: entries.collect() })
}

fn of_part(plan: &Plan, part: usize) -> impl Iterator<Item = &Command> {
    plan.commands.iter().filter(move |command| command.part == part)
}

fn by_clock(gpu: &Gpu, plan: &Plan, encoder: wgpu::CommandEncoder) -> Result<Vec<f64>, BackendError> {
    gpu.queue.submit([encoder.finish()]);
    gpu.wait_idle("profile")?;
    let mut times = vec![];
    for part in 0..plan.parts.len() {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()), of_part(plan, part));
        let start = Instant::now();
        gpu.queue.submit([encoder.finish()]);
        gpu.wait_idle("profile")?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

fn by_timestamps(
    gpu: &Gpu,
    plan: &Plan,
    mut encoder: wgpu::CommandEncoder,
) -> Result<Vec<f64>, BackendError> {
    let parts = plan.parts.len();
    let count = parts as u32 * 2;
    let bytes = u64::from(count) * 8;
    let queries = gpu.labelled("profile", || {
        gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("profile"),
            ty: wgpu::QueryType::Timestamp,
            count,
        })
    })?;
    let resolved = gpu.buffer(Purpose::Workspace, "profile", bytes, Use::QUERY_RESOLVE | Use::COPY_SRC)?;
    let readback = gpu.buffer(Purpose::Workspace, "profile", bytes, Use::MAP_READ | Use::COPY_DST)?;
    for part in 0..parts {
        let first = part as u32 * 2;
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            }),
        });
        encode(&mut pass, of_part(plan, part));
    }
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    encoder.copy_buffer_to_buffer(&resolved, 0, &readback, 0, bytes);
    gpu.queue.submit([encoder.finish()]);
    let readable = Gpu::map(&readback, wgpu::MapMode::Read);
    if !gpu.mapped(&readable, "profile")? {
        return Err(execution("profile", "the timestamps could not be mapped".into()));
    }
    let view = readback.get_mapped_range(..).map_err(|error| execution("profile", error.to_string()))?;
    let stamps: Vec<u64> = view.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
    let period_ns = f64::from(gpu.queue.get_timestamp_period());
    Ok(stamps.chunks_exact(2).map(|pair| pair[1].wrapping_sub(pair[0]) as f64 * period_ns / 1e3).collect())
}

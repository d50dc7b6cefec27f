//! Bounds on faults, the same for policies however they come.

use steadfast_api::{
    Percent, Size,
    fault::{Cpu, Fault, Length, Memory},
};

use crate::problem::BadField;

/// A piece of an answer, or what may come of it within a second.
const BYTES_MAX: Size = match Size::from_bytes(1 << 30) {
    Some(size) => size,
    None => unreachable!(),
};
/// The least memory that is worth holding.
const MEMORY_MIN: u64 = 64 << 10;

#[expect(clippy::needless_pass_by_value, reason = "callers hand over numbers, spans and texts alike")]
pub fn bad(key: String, value: impl ToString, expected: impl Into<String>) -> BadField {
    BadField { key, value: value.to_string(), expected: expected.into() }
}

/// `field`: the fault's place in what was read.
pub fn check_fault(fault: &Fault, field: &str) -> Result<(), BadField> {
    let at = |name: &str| format!("{field}.{}.{name}", fault.kind());
    match fault {
        Fault::Delay(delay) => match &delay.length {
            Length::Fixed(fixed) if fixed.fixed.get() + fixed.jitter.get() > Length::MOST.get() => {
                Err(bad(format!("{field}.delay"), fixed.fixed, "fixed and jitter of together at most 1h"))
            }
            Length::Uniform(uniform) if uniform.to > Length::MOST => Err(bad(at("uniform.to"), uniform.to, "at most 1h")),
            Length::Normal(normal) if normal.mean > Length::MOST => Err(bad(at("normal.mean"), normal.mean, "at most 1h")),
            Length::Normal(normal) if normal.deviation > Length::MOST => Err(bad(at("normal.deviation"), normal.deviation, "at most 1h")),
            Length::Pareto(pareto) if pareto.p99 > Length::MOST => Err(bad(at("pareto.p99"), pareto.p99, "at most 1h")),
            _ => match delay.at_most {
                Some(most) if most > Length::MOST => Err(bad(at("atMost"), most, "at most 1h")),
                _ => Ok(()),
            },
        },
        Fault::Cpu(cpu) => check_cpu(cpu, &format!("{field}.cpu")),
        Fault::Memory(memory) => check_memory(memory, &format!("{field}.memory")),
        Fault::Throttle(throttle) => within(throttle.bytes_per_second, 1, &at("bytesPerSecond")),
        Fault::Slice(slice) if slice.pause > Length::MOST => Err(bad(at("pause"), slice.pause, "at most 1h")),
        Fault::Slice(slice) => within(slice.bytes, 1, &at("bytes")),
        Fault::Stall(stall) if stall.duration.is_zero() || stall.duration > Length::MOST => Err(bad(at("for"), stall.duration, "more than 0 and at most 1h")),
        Fault::Corrupt(corrupt) if corrupt.events.is_some() && corrupt.event_share == Percent::ZERO => {
            Err(bad(at("eventShare"), corrupt.event_share, "more than 0%"))
        }
        Fault::Abort(_) | Fault::Corrupt(_) | Fault::Reset(_) | Fault::Truncate(_) | Fault::Stall(_) | Fault::Blackhole(_) => Ok(()),
    }
}

fn within(size: Size, least: u64, key: &str) -> Result<(), BadField> {
    if size.get() < least || size > BYTES_MAX { Err(bad(key.to_owned(), size, format!("{least} to {BYTES_MAX}"))) } else { Ok(()) }
}

pub fn check_cpu(cpu: &Cpu, field: &str) -> Result<(), BadField> {
    if cpu.load == Percent::ZERO {
        return Err(bad(format!("{field}.load"), cpu.load, "more than 0%"));
    }
    if !(1..=super::cpu::THREADS_MAX).contains(&usize::from(cpu.cores)) {
        return Err(bad(format!("{field}.cores"), cpu.cores, "1 to 1024"));
    }
    Ok(())
}

pub fn check_memory(memory: &Memory, field: &str) -> Result<(), BadField> {
    if memory.bytes.get() < MEMORY_MIN { Err(bad(format!("{field}.bytes"), memory.bytes, "64Ki or more")) } else { Ok(()) }
}

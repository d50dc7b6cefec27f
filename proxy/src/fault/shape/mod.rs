//! An answer's body on its way through faults: what is to be done to it ([`Shape`]), the body that it is done to ([`Shaped`]), what that waits for ([`pause`]), and what
//! it consists of ([`units`]).

mod pause;
mod shaped;
mod units;

use steadfast_api::{
    FaultKind,
    fault::{EventChange, Fault, StallAt},
};

pub use self::{shaped::Shaped, units::Units};
use super::{
    corrupt::values::Change,
    decide::{FaultPlan, Planned},
};

/// What is to be done to a body.
#[derive(Default)]
pub struct Shape {
    pub stall: Option<Planned>,
    pub slice: Option<Planned>,
    pub throttle: Option<Planned>,
    pub reset: Option<Planned>,
    pub truncate: Option<Planned>,
    /// Of an answer that is a stream.
    pub corrupt: Option<Planned>,
    /// What the answer consists of, where that matters.
    pub units: Units,
}

impl Shape {
    /// Takes its part of a plan; what has to happen before there is an answer is gone from it already, and `corrupt` shows with the answer.
    pub fn take(plan: &mut FaultPlan) -> Self {
        Self {
            stall: plan.take(FaultKind::Stall),
            slice: plan.take(FaultKind::Slice),
            throttle: plan.take(FaultKind::Throttle),
            reset: plan.take(FaultKind::Reset),
            truncate: plan.take(FaultKind::Truncate),
            corrupt: None,
            units: Units::Pieces,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.each().is_empty()
    }

    fn each(&self) -> Vec<&Planned> {
        [&self.stall, &self.slice, &self.throttle, &self.reset, &self.truncate, &self.corrupt].into_iter().flatten().collect()
    }

    /// As `steadfast-injected` names it.
    pub fn notes(&self) -> Vec<String> {
        let note = |planned: &&Planned| match &planned.fault {
            Fault::Stall(stall) => format!("stall;ms={};at={}", stall.duration.get().as_millis(), name(&StallAt::ALL, stall.at)),
            Fault::Slice(slice) => format!("slice;bytes={};pause={}", slice.bytes.get(), slice.pause.get().as_millis()),
            Fault::Throttle(throttle) => format!("throttle;bps={}", throttle.bytes_per_second.get()),
            Fault::Reset(reset) => format!("reset;after={}", reset.after_bytes.unwrap_or_default().get()),
            Fault::Truncate(truncate) => format!("truncate;after={}", truncate.after_bytes.get()),
            Fault::Corrupt(corrupt) => match (self.units, corrupt.events, Change::of(corrupt)) {
                (Units::Events, Some(change), _) => format!("corrupt;events={}", name(&EventChange::ALL, change)),
                (_, _, change) => change.map(Change::note).unwrap_or_default(),
            },
            _ => String::new(),
        };
        self.each().iter().map(note).collect()
    }

    /// Bytes that pass before the answer is cut off, and the fault that does it. Of two the nearer one.
    fn cut(&self) -> Option<(u64, &Planned)> {
        [&self.reset, &self.truncate].into_iter().flatten().map(|planned| (limit(&planned.fault), planned)).min_by_key(|(limit, _)| *limit)
    }

    fn take_cut(&mut self, kind: FaultKind) -> Option<Planned> {
        if kind == FaultKind::Reset { self.reset.take() } else { self.truncate.take() }
    }
}

fn name<T: PartialEq>(all: &[(T, &'static str)], one: T) -> &'static str {
    all.iter().find(|(value, _)| *value == one).map_or("", |(_, name)| name)
}

const fn limit(fault: &Fault) -> u64 {
    match fault {
        Fault::Reset(reset) => match reset.after_bytes {
            Some(bytes) => bytes.get(),
            None => 0,
        },
        Fault::Truncate(truncate) => truncate.after_bytes.get(),
        _ => u64::MAX,
    }
}

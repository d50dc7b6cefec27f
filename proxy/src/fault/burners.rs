//! The CPU burns of armed policies and of single requests.
//!
//! Invariants: a burn ends with its policy, at its own deadline, whichever comes first; all burns of requests together never have more than
//! [`THREADS_PER_CORE`] threads a core. A request that asks for what is burning already makes it last longer instead of adding to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use steadfast_api::{fault::Cpu, sidecar::BurnedTime};

use super::{
    budget::ActiveFault,
    cpu::{Burn, Target},
    policy::CompiledPolicy,
};
use crate::clock;

const THREADS_PER_CORE: usize = 4;

#[derive(Default)]
pub struct Burners {
    /// While a policy with `cpuPressure` is armed.
    pressure: Mutex<Vec<(Arc<CompiledPolicy>, Burn)>>,
    requested: Mutex<Vec<Requested>>,
    /// CPU time of pressure that is over and that nobody has asked for yet, by policy.
    over: Mutex<BTreeMap<Arc<str>, u64>>,
}

struct Requested {
    policy: Arc<CompiledPolicy>,
    cpu: Cpu,
    burn: Burn,
}

fn target(cpu: &Cpu, deadline_ns: u64) -> Target {
    Target {
        load: cpu.load.ratio(),
        threads: usize::from(cpu.cores),
        pin: Vec::new(),
        duration: Duration::from_nanos(deadline_ns.saturating_sub(clock::now_ns())),
    }
}

impl Burners {
    /// Stops what belongs to policies that are not in force, and starts the pressure of those that have come.
    pub fn keep(&self, policies: &[Arc<CompiledPolicy>]) {
        let in_force = |policy: &Arc<CompiledPolicy>| policies.iter().any(|other| Arc::ptr_eq(policy, other));
        self.requested.lock().unwrap_or_else(PoisonError::into_inner).retain(|requested| in_force(&requested.policy) && !requested.burn.is_over());
        let mut pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        pressure.retain(|(policy, burn)| {
            let stays = in_force(policy);
            if !stays {
                *self.over.lock().unwrap_or_else(PoisonError::into_inner).entry(Arc::clone(&policy.name)).or_default() += burn.burned_ns();
            }
            stays
        });
        for policy in policies {
            let Some(cpu) = &policy.source.spec.cpu_pressure else { continue };
            if pressure.iter().any(|(other, _)| Arc::ptr_eq(policy, other)) {
                continue;
            }
            match Burn::start(&target(cpu, policy.expires_ns)) {
                Ok(burn) => pressure.push((Arc::clone(policy), burn)),
                Err(error) => tracing::error!(policy = &*policy.name, %error, "CPU pressure could not start"),
            }
        }
    }

    /// CPU time that policies with `cpuPressure` took since this was asked last.
    pub fn burned(&self) -> Vec<BurnedTime> {
        let mut burned = std::mem::take(&mut *self.over.lock().unwrap_or_else(PoisonError::into_inner));
        for (policy, burn) in &*self.pressure.lock().unwrap_or_else(PoisonError::into_inner) {
            *burned.entry(Arc::clone(&policy.name)).or_default() += burn.burned_ns();
        }
        burned.into_iter().filter(|(_, cpu_ns)| *cpu_ns > 0).map(|(policy, cpu_ns)| BurnedTime { policy: policy.to_string(), cpu_ns }).collect()
    }

    /// Threads that burn now, for policies and for requests.
    pub fn threads(&self) -> usize {
        let pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner);
        let requested = self.requested.lock().unwrap_or_else(PoisonError::into_inner);
        let burns = pressure.iter().map(|(_, burn)| burn).chain(requested.iter().map(|requested| &requested.burn));
        burns.filter(|burn| !burn.is_over()).map(Burn::threads).sum()
    }

    /// Burns for a request of `policy`. The fault stays active until the burn ends. `false`: too many burners already.
    pub fn request(&self, policy: &Arc<CompiledPolicy>, cpu: &Cpu, active: ActiveFault) -> bool {
        let now_ns = clock::now_ns();
        // Without a length of its own it lasts as long as its policy, and never longer.
        let deadline_ns = cpu.duration.map_or(policy.expires_ns, |duration| now_ns.saturating_add(clock::ns(duration.get())).min(policy.expires_ns));
        let mut requested = self.requested.lock().unwrap_or_else(PoisonError::into_inner);
        requested.retain(|requested| !requested.burn.is_over());
        if let Some(same) =
            requested.iter().find(|requested| Arc::ptr_eq(&requested.policy, policy) && requested.cpu.load == cpu.load && requested.cpu.cores == cpu.cores)
        {
            same.burn.extend(deadline_ns);
            return true;
        }
        let threads: usize = requested.iter().map(|requested| requested.burn.threads()).sum();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if threads + usize::from(cpu.cores) > cores * THREADS_PER_CORE {
            return false;
        }
        match Burn::start_holding(&target(cpu, deadline_ns), &Arc::new(active)) {
            Ok(burn) => {
                requested.push(Requested { policy: Arc::clone(policy), cpu: cpu.clone(), burn });
                true
            }
            Err(error) => {
                tracing::error!(policy = &*policy.name, %error, "CPU burn could not start");
                false
            }
        }
    }
}

//! `steadfast-controller`: runs experiments on a platform, watches what happens, and says whether it held.
//!
//! In: an experiment file (`steadfast_api::test`). Through: [`platform`] keeps the target and carries out faults, [`load`] plays the users, [`serve`] hears the
//! sidecars, [`observe`] turns all of it into marks, availability and consistency, [`experiment`] leads the run. Out: [`report`].

pub mod access;
pub mod agent;
pub mod cluster;
pub mod events;
pub mod experiment;
pub mod golden;
pub mod http;
pub mod install;
pub mod leader;
pub mod load;
pub mod metrics;
pub mod objects;
pub mod observe;
pub mod platform;
pub mod reconcile;
pub mod report;
mod runtime;
pub mod serve;
pub mod webhook;
mod words;

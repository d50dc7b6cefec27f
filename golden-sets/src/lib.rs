//! Golden sets: the questions whose right answers are known, the engines that know them, and the verdicts on servers that should.
//!
//! ```text
//! directory ─read→ GoldenSet ─open→ Engine ─prove→ Proof          a set that its engine cannot reproduce is refused
//!                     │                                │
//!   live answers ─────┴─→ Checker (enrolled · stored · reference) ─→ Outcome ─→ Judge ─→ Verdict
//!        └─→ Enroller ─→ Enrolment ─write→ <set>/enrolled/<name>/
//! ```
//!
//! - [`set`]: reads and writes sets (the ONNX model zoo's layout, with or without `golden.yaml`); digests verified, everything bounded.
//! - [`engine`]: ONNX Runtime (loaded while running) and rten (linked in); both prove themselves on a set before they are believed.
//! - [`compare`]: one rule a kind of output; [`check`] applies it three ways; [`enrol`] learns a live server's own answers and noise.
//! - [`sequential`]: from matches and mismatches to `Pass`, `Fail` or `Inconclusive`, with a promise about false alarms that survives peeking.
//! - [`oip`]: the Open Inference Protocol, so that whoever talks to servers does not write it again.
//!
//! It is not a client and not a scheduler: nothing here opens a connection, starts a thread of its own (engines keep theirs), reads a clock or decides when to
//! replay. Data enters as files, bytes and [`Tensor`]s, and leaves as values, and as files where [`set::write`] and [`enrol::Enrolment::write`] are asked to.

pub mod check;
pub mod compare;
pub mod engine;
pub mod enrol;
pub mod oip;
pub mod onnx;
pub mod sequential;
pub mod set;
pub mod tensor;

#[cfg(test)]
mod testing;

pub use check::{Check, Checker};
pub use engine::{Engine, EngineChoice, EngineOptions, Proof, Refused, prove};
pub use enrol::{Enroller, Enrolment};
pub use sequential::{Judge, Settings};
pub use set::{GoldenSet, Sample, SetError};
pub use steadfast_api::golden::{Outcome, Verdict};
pub use tensor::{DataType, Tensor, TensorError, Values};

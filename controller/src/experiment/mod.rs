//! An experiment, from the file to the report.
//!
//! [`plan`] reads the file and refuses what cannot work, all of it at once; [`run`] leads the flow (warm-up, baseline, then for each step fault, monitoring and
//! analysis until stable); [`halt`] stops it early; [`conclude`] turns the history into a report with the help of [`hypothesis`], [`score`], [`losses`] and
//! [`advice`].
//! [`local`] is the way through for one machine. Everything but that is generic over [`Platform`](crate::platform::Platform).

pub mod advice;
pub mod conclude;
pub mod halt;
pub mod hypothesis;
pub mod local;
pub mod losses;
pub mod plan;
pub mod progress;
pub mod remote;
pub mod run;
pub mod score;
pub mod select;
pub mod sets;

pub use plan::Plan;
pub use progress::Progress;

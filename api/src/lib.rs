//! The words that every part of Steadfast shares: quantities, faults, policies, golden sets, experiments, marks, reports.
//!
//! Pure data with serde: parsed at the edge into types that cannot hold an illegal value. No input or output, no tokio, hyper or kube.

pub mod fault;
#[cfg(test)]
mod frozen;
pub mod golden;
pub mod mark;
pub mod node;
pub mod policy;
pub mod quantity;
pub mod read;
pub mod report;
pub mod resource;
pub mod sidecar;
pub mod test;

pub use fault::FaultKind;
pub use quantity::{BadQuantity, Percent, Rate, Size, Span};

/// `apiVersion` of every custom resource and file.
pub const API_VERSION: &str = "steadfast.dev/v1alpha1";

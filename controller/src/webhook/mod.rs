//! Injection: which pods get the sidecar, how the pod changes, and the certificate that the API server trusts.

pub mod decide;
pub mod manifest;
pub mod patch;

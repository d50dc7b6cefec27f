//! Injection: which pods get the sidecar, how a pod changes, what the API server asks, and the certificate that it trusts.

pub mod admit;
pub(crate) mod allowed;
pub mod certificate;
pub mod decide;
pub mod flags;
pub mod manifest;
pub mod mounted;
pub(crate) mod past;
pub mod patch;
pub mod resources;
pub mod secret;
pub mod server;
mod yaml;

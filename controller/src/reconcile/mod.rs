//! Custom resources: what they ask for, carried out and written back as status.

pub mod crd;
pub mod resource;
pub mod schema;

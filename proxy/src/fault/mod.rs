//! Faults: what is armed, who may ask, what falls on a request (decided once), and doing it.

pub mod armed;
pub mod budget;
pub mod burners;
pub mod corrupt;
pub mod cpu;
pub mod decide;
pub mod header;
pub mod inject;
pub mod policy;
pub mod timer;

//! A cluster's objects: custom resources, what they ask for carried out and written back as status; pods and Services, what is wrong with them told.

pub mod crd;
pub mod fault_policy;
pub mod golden_set;
pub mod injection;
pub mod pods;
pub mod resilience_schedule;
pub mod resilience_test;
pub mod resource;
pub mod schema;
pub mod scope;
pub mod status;
pub mod watched;

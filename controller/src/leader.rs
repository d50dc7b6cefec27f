//! Which of the controller's replicas leads: a Lease.

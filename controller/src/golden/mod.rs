//! Golden sets on a cluster: fetched from their source, verified, handed to sidecars; verdicts per pod and for the service; readiness gate.

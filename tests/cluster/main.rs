//! Does Steadfast hold on a real cluster? Each test makes what it needs in a namespace of its own; `harness` finds or starts the cluster.
//!
//! With root and the built tool (`tests/cluster/cluster build`, which `tests/run` calls) the tests start a cluster on this machine and leave it up;
//! `tests/cluster/cluster down` ends it. With `-- --test-threads 99` those that disturb nobody go side by side, which halves the time.
//! `CLUSTER_KUBERNETES=1.29` makes that cluster one of an older version; what cannot be there then says that it did not run, and since when it can.
//! `STEADFAST_TEST_KUBECONFIG=FILE` names another one (kind, k3d, a cloud); whatever needs the power switch of a node then says that it did not run.

mod certificates;
mod checks;
mod experiments;
mod failures;
mod golden;
mod harness;
mod injection;
mod install;
mod killed;
mod latency;
mod lost;
mod manifests;
mod meshes;
mod reads;
mod redirect;
mod resources;
mod scale;
mod schedules;
mod scope;
mod security;
mod serving;
mod sources;
mod templates;
mod truth;
mod tutorial;
mod upgrade;
mod users;
mod versions;
mod watches;
mod webhook;
mod workloads;

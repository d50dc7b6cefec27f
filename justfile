# The chores, one way to do each. `just` is optional: every line is a plain command.

# All tests, as CI runs them.
test:
    tests/run

# Before a commit: seconds, not minutes.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

format:
    cargo fmt --all

# Whether clients and servers notice the sidecar, Triton among them: sets up what it needs (1 GB), then builds the tests and takes half a minute.
conformance-full:
    STEADFAST_CONFORMANCE=full STEADFAST_REQUIRE_CLUSTER=0 tests/run conformance

# The case study in its short form.
demo:
    cargo run --release -- demo --quick

# The case study on a real cluster on this machine (root; `tests/cluster/cluster build` first), in full: 6 minutes; report in target/case-study.
case-study-on-a-cluster:
    STEADFAST_CASE_STUDY=full cargo test --test cluster -- --nocapture the_case_study

# How far the marks of 50 killed pods and of 5 nodes without power are from the truth, on a real cluster on this machine (root). 15 minutes.
truth:
    STEADFAST_TRUTH=full cargo test --test cluster -- --nocapture truth::

# The leader is killed at every second of a run, on a real cluster on this machine (root). 25 minutes.
kills:
    STEADFAST_KILLS=full cargo test --test cluster -- --nocapture killed::
# Every failure, and in it the leader, the command line and the API server lost, on a real cluster on this machine (root). 20 minutes.
kill-matrix:
    STEADFAST_KILL_MATRIX=full cargo test --test cluster -- --nocapture --test-threads 1 a_leader_that_is_lost lost::

# Sidecars of this version under the controller of another revision, and the reverse, on a real cluster on this machine (root). Builds the other one beside this one.
versions revision:
    tests/cluster/versions {{revision}}

# Every test of a cluster but those that measure milliseconds, on Kubernetes 1.29, the oldest that is promised, beside the usual cluster on this machine (root). `tests/cluster/kubernetes-*.mod` are
# the versions that there are. The first time it builds both, a quarter of an hour.
old-kubernetes version="1.29":
    CLUSTER_NAME=old CLUSTER_KUBERNETES={{version}} STEADFAST_REQUIRE_CLUSTER=1 cargo test --workspace --test cluster -- --nocapture --test-threads 99 --skip latency:: --skip truth::

# Where the build's time goes.
timings:
    cargo build --release --timings

# Write docs/schema/ anew after a change in api/.
schemas:
    cargo run -- schema report > docs/schema/report.v1alpha1.json
    cargo run -- schema test > docs/schema/resilience-test.v1alpha1.json
    cargo run -- schema policy > docs/schema/policy.v1alpha1.json

# Write the chart's CustomResourceDefinitions anew after a change in api/.
crds:
    STEADFAST_WRITE_CRDS=1 cargo test -q -p steadfast-controller --lib published_definitions_are_current

# How exact delays and CPU burns are on this machine.
accuracy:
    cargo run --release --example fault_accuracy -p steadfast-proxy

# The false-alarm promise of golden verdicts, simulated.
statistics:
    cargo run --release --example sequential_simulation -p steadfast-golden-sets

# How many sidecars one controller carries: CPU, memory and how fast policies travel, up to 10,000. Takes 5 minutes; needs 25,000 open files for each of two processes.
scale:
    cargo run --release -p steadfast-bench-scale

# What the sidecar costs beside a TCP copy, haproxy, nginx, Envoy and pingora: CPU per request, latency, memory. A quarter of an hour on an idle machine with two cores; `--quick`: two minutes.
dataplane *ARGS:
    benches/dataplane/run {{ARGS}}

# NetworkPolicies, the chart's and those that docs/security.md asks for, enforced on a real cluster on this machine (root; after tests/run, which makes the S3 server). Five
# minutes; a cluster that is up starts anew.
network-policies:
    CLUSTER_NETWORK_POLICIES=1 tests/cluster/cluster up 3
    STEADFAST_S3_SERVER=$PWD/.cache/tools/bin/versitygw cargo test --test cluster -- --nocapture where_network_policies
    tests/cluster/cluster down

# What 5,000 pods of others cost the controller, on a real cluster on this machine (root). Two minutes.
watched-pods:
    STEADFAST_SCALE=full cargo test --test cluster -- --nocapture scale::

# Write deploy/manifests/ anew after a change in deploy/chart (Helm: `tests/cluster/cluster build` makes one).
manifests:
    STEADFAST_WRITE_MANIFESTS=1 STEADFAST_REQUIRE_HELM=1 cargo test -q --test chart plain_manifests

# Everything that reads bytes which others made, fuzzed for ten minutes each (`cargo install cargo-fuzz`, a nightly compiler). Two and a half hours.
fuzz seconds="600":
    fuzz/run {{seconds}}

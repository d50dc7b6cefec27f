//! What is armed right now. One [`ArcSwap`] load tells a request; changes come from the controller, from `/policy`, and from the clock.
//!
//! Invariants: an older or equal generation of the same controller is ignored; a policy that comes again unchanged keeps its deadline and its budget, so nothing
//! outlives the deadline that it was first given; a policy that has expired or was disarmed by hand stays so until it comes changed. The controller says what is
//! left of an expiry, so a policy is unchanged when its deadline is the same to within [`SAME_DEADLINE_NS`]. Policies set by hand stand beside the controller's and
//! know no generations.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use steadfast_api::{
    policy::{GOLDEN_SETS_MAX, GoldenAssignment, NamedPolicy, POLICIES_MAX, PolicySnapshot},
    sidecar::{REFUSED_MAX, What},
};
use tokio::sync::{Notify, watch};

use super::{burners::Burners, memory::Memory, policy::CompiledPolicy, ring::Ring};
use crate::{clock, control::report::Evidence, hold::Hold, problem::BadField};

/// Two deadlines nearer than this are one, said twice.
const SAME_DEADLINE_NS: u64 = 1_000_000_000;

/// Who armed a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Controller,
    Manual,
}

/// What is in force.
#[derive(Debug, Default)]
pub struct Armed {
    pub generation: u64,
    /// Not expired when this was made; a request still looks at each one's deadline.
    pub policies: Vec<Arc<CompiledPolicy>>,
}

#[derive(Default)]
struct State {
    /// The controller's process that `generation` counts in.
    epoch: String,
    generation: u64,
    /// What the controller says and this sidecar does not understand, or that cannot be, by name.
    refused: Vec<String>,
    controller: Vec<Arc<CompiledPolicy>>,
    manual: Vec<Arc<CompiledPolicy>>,
    /// Policies that were disarmed by hand: the controller's next snapshot does not bring them back.
    disarmed: Vec<Arc<CompiledPolicy>>,
}

/// The place where arming, disarming and expiry happen.
pub struct Store {
    armed: ArcSwap<Armed>,
    state: Mutex<State>,
    pub burners: Burners,
    pub memory: Memory,
    pub hold: Hold,
    /// The port is closed by a policy.
    pub refuse: Hold,
    /// The last faults that took place.
    pub ring: Ring,
    /// Why the pod stays out of its Service, and until when.
    kept_out: Mutex<Option<(String, u64)>>,
    /// Golden sets that the controller wants replayed.
    pub golden: watch::Sender<Vec<GoldenAssignment>>,
    /// Told whenever something else is in force.
    pub changes: watch::Sender<()>,
    evidence: Evidence,
    changed: Notify,
}

impl Store {
    pub fn new(evidence: Evidence) -> Self {
        Self {
            armed: ArcSwap::default(),
            state: Mutex::default(),
            burners: Burners::default(),
            memory: Memory::default(),
            hold: Hold::default(),
            refuse: Hold::default(),
            ring: Ring::default(),
            kept_out: Mutex::default(),
            golden: watch::Sender::new(Vec::new()),
            changes: watch::Sender::new(()),
            evidence,
            changed: Notify::new(),
        }
    }

    /// What is armed. Never hold the guard across an `.await`.
    pub fn load(&self) -> arc_swap::Guard<Arc<Armed>> {
        self.armed.load()
    }

    /// Arms exactly what the controller says, but for what cannot be. `false`: not newer than what is armed, ignored.
    pub fn from_controller(&self, snapshot: PolicySnapshot) -> bool {
        self.from_newer_controller(snapshot, Vec::new())
    }

    /// The same, of a controller that says policies which this sidecar does not understand: the controller is told their names.
    pub fn from_newer_controller(&self, snapshot: PolicySnapshot, mut refused: Vec<String>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshot.epoch == state.epoch && snapshot.generation <= state.generation {
            return false;
        }
        let policies = compile(snapshot.policies, &state.controller, |name, error| {
            tracing::error!(policy = name, %error, "a policy of the controller is refused; what else it says is in force");
            refused.push(name);
            Ok(())
        });
        let Ok(policies) = policies.map_err(|never: std::convert::Infallible| never);
        refused.truncate(REFUSED_MAX);
        let until = |span: steadfast_api::Span| clock::now_ns().saturating_add(span.get().as_nanos() as u64);
        *self.kept_out.lock().unwrap_or_else(PoisonError::into_inner) = snapshot.unready.map(|unready| (unready.reason, until(unready.expires_after)));
        let mut golden = snapshot.golden;
        if golden.len() > GOLDEN_SETS_MAX {
            tracing::error!(assigned = golden.len(), most = GOLDEN_SETS_MAX, "more golden sets than one pod takes; the last ones are not replayed");
            golden.truncate(GOLDEN_SETS_MAX);
        }
        self.golden.send_if_modified(|current| {
            let changed = *current != golden;
            *current = golden;
            changed
        });
        // What was disarmed by hand is remembered for as long as the controller goes on saying it.
        state.disarmed.retain(|disarmed| policies.iter().any(|policy| Arc::ptr_eq(policy, disarmed)));
        state.epoch = snapshot.epoch;
        state.generation = snapshot.generation;
        state.refused = refused;
        state.controller = policies;
        self.publish(&state);
        true
    }

    /// Why the controller keeps this pod out of its Service now, if it does. What it said ends by itself.
    pub fn kept_out(&self) -> Option<String> {
        let kept_out = self.kept_out.lock().unwrap_or_else(PoisonError::into_inner);
        kept_out.as_ref().filter(|(_, until_ns)| clock::now_ns() < *until_ns).map(|(reason, _)| reason.clone())
    }

    /// Arms exactly `policies` beside what the controller says.
    pub fn from_hand(&self, policies: Vec<NamedPolicy>) -> Result<(), BadField> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A deadline counts from arming, and arming by hand again is arming.
        state.manual = compile(policies, &[], |_, error| Err(error))?;
        self.publish(&state);
        Ok(())
    }

    /// Disarms everything, whoever armed it.
    pub fn disarm(&self) {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        state.manual.clear();
        state.disarmed.clone_from(&state.controller);
        self.publish(state);
    }

    /// Disarms the policies of this name, whoever armed them. `false`: there is none.
    pub fn disarm_named(&self, name: &str) -> bool {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        let meant = |policy: &Arc<CompiledPolicy>| *policy.name == *name;
        let found = in_force(state, clock::now_ns()).any(|(_, policy)| meant(&policy));
        if found {
            state.manual.retain(|policy| !meant(policy));
            let more = state.controller.iter().filter(|policy| meant(policy)).cloned();
            state.disarmed.extend(more);
            self.publish(state);
        }
        found
    }

    /// Every policy in force with who armed it.
    pub fn list(&self) -> Vec<(Source, Arc<CompiledPolicy>)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        in_force(&state, clock::now_ns()).collect()
    }

    fn publish(&self, state: &State) {
        let policies: Vec<_> = in_force(state, clock::now_ns()).map(|(_, policy)| policy).collect();
        let armed = !policies.is_empty();
        // Whatever still waits for a policy that is over ends with it.
        self.armed.load().policies.iter().filter(|before| !policies.iter().any(|policy| Arc::ptr_eq(policy, before))).for_each(|over| over.end());
        self.burners.keep(&policies);
        self.memory.keep(&policies);
        self.hold.set(policies.iter().any(|policy| policy.source.spec.held_down));
        self.refuse.set(policies.iter().any(|policy| policy.source.spec.refuse));
        tracing::info!(generation = state.generation, policies = policies.len(), "policies in force");
        self.armed.store(Arc::new(Armed { generation: state.generation, policies }));
        self.changes.send_replace(());
        self.evidence.urgent(What::Policy { generation: state.generation, armed, refused: state.refused.clone() });
        self.changed.notify_one();
    }

    /// Takes away what has expired, for as long as it is polled.
    pub async fn expire(&self) {
        loop {
            let next = self.armed.load().policies.iter().map(|policy| policy.expires_ns).min();
            let due = async {
                match next {
                    Some(at_ns) => tokio::time::sleep_until(clock::instant(at_ns).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                    if self.armed.load().policies.iter().any(|policy| policy.is_expired(clock::now_ns())) {
                        tracing::info!("a policy has expired");
                        self.publish(&state);
                    }
                }
                () = self.changed.notified() => {}
            }
        }
    }
}

fn in_force(state: &State, now_ns: u64) -> impl Iterator<Item = (Source, Arc<CompiledPolicy>)> {
    let manual = state.manual.iter().map(|policy| (Source::Manual, policy));
    let controller = state
        .controller
        .iter()
        .filter(|policy| !state.disarmed.iter().any(|disarmed| Arc::ptr_eq(policy, disarmed)))
        .map(|policy| (Source::Controller, policy));
    manual.chain(controller).filter(move |(_, policy)| !policy.is_expired(now_ns)).map(|(source, policy)| (source, Arc::clone(policy)))
}

/// `refuse` is told of each that cannot be, and says whether the others count.
fn compile<E>(
    policies: Vec<NamedPolicy>,
    before: &[Arc<CompiledPolicy>],
    mut refuse: impl FnMut(String, BadField) -> Result<(), E>,
) -> Result<Vec<Arc<CompiledPolicy>>, E> {
    let now_ns = clock::now_ns();
    let mut compiled: Vec<Arc<CompiledPolicy>> = Vec::with_capacity(policies.len().min(POLICIES_MAX));
    let all = policies.len();
    for (i, policy) in policies.into_iter().enumerate() {
        let name = policy.name.clone();
        let unchanged = before.iter().find(|before| is_unchanged(before, &policy, now_ns));
        let one = if compiled.len() >= POLICIES_MAX {
            Err(BadField { key: "policies".into(), value: format!("{all} policies"), expected: format!("at most {POLICIES_MAX}") })
        } else if compiled.iter().any(|other| *other.name == *name) {
            Err(BadField { key: format!("policies[{i}].name"), value: name.clone(), expected: "a name that no other policy has".into() })
        } else if let Some(unchanged) = unchanged {
            Ok(Arc::clone(unchanged))
        } else {
            CompiledPolicy::new(policy, &format!("policies[{i}]"), now_ns).map(Arc::new)
        };
        match one {
            Ok(one) => compiled.push(one),
            Err(error) => refuse(name, error)?,
        }
    }
    Ok(compiled)
}

fn is_unchanged(before: &CompiledPolicy, policy: &NamedPolicy, now_ns: u64) -> bool {
    let mut source = policy.clone();
    source.spec.expires_after = before.source.spec.expires_after;
    let deadline_ns = now_ns.saturating_add(policy.spec.expires_after.get().as_nanos() as u64);
    source == before.source && deadline_ns.abs_diff(before.expires_ns) < SAME_DEADLINE_NS
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use steadfast_api::read::from_yaml;

    use super::*;

    fn policy(name: &str, expires: &str) -> NamedPolicy {
        from_yaml("policy", &format!("{{name: {name}, spec: {{expiresAfter: {expires}, budget: {{concurrent: 1, share: 100%}}}}}}")).unwrap()
    }

    fn names(store: &Store) -> Vec<String> {
        store.load().policies.iter().map(|policy| policy.name.to_string()).collect()
    }

    fn snapshot(generation: u64, policies: &[NamedPolicy]) -> PolicySnapshot {
        PolicySnapshot { generation, policies: policies.to_vec(), ..PolicySnapshot::default() }
    }

    #[test]
    fn only_a_newer_generation_counts() {
        let store = Store::new(Evidence::new(100));
        assert!(store.from_controller(snapshot(2, &[policy("a", "1h")])));
        assert!(!store.from_controller(snapshot(2, &[])) && !store.from_controller(snapshot(1, &[])));
        assert_eq!(names(&store), ["a"]);
        assert!(store.from_controller(snapshot(3, &[])));
        assert!(names(&store).is_empty());
    }

    #[test]
    fn another_controller_counts_anew_and_says_what_is_left() {
        let store = Store::new(Evidence::new(100));
        let from = |epoch: &str, generation, expires| PolicySnapshot { epoch: epoch.into(), ..snapshot(generation, &[policy("a", expires)]) };
        store.from_controller(from("one", 90, "1h"));
        let (deadline, before) = (store.load().policies[0].expires_ns, Arc::clone(&store.load().policies[0]));
        assert!(store.from_controller(from("two", 1, "59m 59s 999ms")));
        assert!(Arc::ptr_eq(&before, &store.load().policies[0]), "its budget and its counts go on");
        assert_eq!(store.load().policies[0].expires_ns, deadline);
        store.disarm();
        store.from_controller(from("two", 2, "59m 59s 998ms"));
        assert!(names(&store).is_empty(), "disarmed by hand, it stays so");
        store.from_controller(from("two", 3, "30m"));
        assert_eq!(names(&store), ["a"], "its end is another now");
        assert!(!store.from_controller(from("two", 3, "1m")));
    }

    #[test]
    fn a_policy_that_cannot_be_is_left_out_and_named_and_everything_else_of_the_snapshot_counts() {
        let evidence = Evidence::new(100);
        let store = Store::new(evidence.clone());
        store.from_controller(snapshot(1, &[policy("a", "1h"), policy("b", "1h")]));
        let unready = Some(steadfast_api::policy::Unready { reason: "wrong answers".into(), expires_after: steadfast_api::Span::from_secs(60) });
        let more = PolicySnapshot { unready, ..snapshot(2, &[policy("bad", "0s"), policy("b", "1h"), policy("b", "2h"), policy("new", "1h")]) };
        assert!(store.from_newer_controller(more, vec!["newer".into()]));
        assert_eq!((names(&store), store.load().generation), (vec!["b".to_owned(), "new".to_owned()], 2), "a is disarmed");
        assert_eq!(store.kept_out().as_deref(), Some("wrong answers"));
        let last = evidence.all().pop().unwrap();
        assert_eq!(last, What::Policy { generation: 2, armed: true, refused: vec!["newer".into(), "bad".into(), "b".into()] });
        let many: Vec<_> = (0..=POLICIES_MAX).map(|i| policy(&format!("p{i}"), "1h")).collect();
        store.from_controller(snapshot(3, &many));
        assert_eq!(names(&store).len(), POLICIES_MAX);
        let What::Policy { refused, .. } = evidence.all().pop().unwrap() else { panic!("of policies") };
        assert_eq!(refused, [format!("p{POLICIES_MAX}")]);
    }

    #[test]
    fn a_bad_policy_by_hand_changes_nothing() {
        let store = Store::new(Evidence::new(100));
        store.from_hand(vec![policy("a", "1h")]).unwrap();
        let error = store.from_hand(vec![policy("a", "1h"), policy("b", "0s")]).unwrap_err();
        assert_eq!(error.key, "policies[1].spec.expiresAfter");
        assert!(store.from_hand(vec![policy("a", "1h"), policy("a", "2h")]).unwrap_err().expected.contains("no other policy"));
        assert_eq!(names(&store), ["a"]);
    }

    #[test]
    fn repeating_a_policy_does_not_move_its_deadline() {
        let store = Store::new(Evidence::new(100));
        store.from_controller(snapshot(1, &[policy("a", "50ms")]));
        let deadline = store.load().policies[0].expires_ns;
        store.from_controller(snapshot(2, &[policy("a", "50ms"), policy("b", "1h")]));
        assert_eq!(store.load().policies[0].expires_ns, deadline);
        std::thread::sleep(Duration::from_millis(60));
        store.from_controller(snapshot(3, &[policy("a", "50ms"), policy("b", "1h")]));
        assert_eq!(names(&store), ["b"]);
    }

    #[test]
    fn policies_set_by_hand_stand_beside_the_controllers_and_disarming_takes_both() {
        let store = Store::new(Evidence::new(100));
        store.from_controller(snapshot(7, &[policy("a", "1h")]));
        store.from_hand(vec![policy("mine", "1h")]).unwrap();
        assert_eq!(names(&store), ["mine", "a"]);
        store.from_controller(snapshot(8, &[policy("a", "1h")]));
        assert_eq!(names(&store), ["mine", "a"]);
        store.disarm();
        assert!(names(&store).is_empty());
        store.from_controller(snapshot(9, &[policy("a", "1h"), policy("new", "1h")]));
        assert_eq!(names(&store), ["new"]);
    }

    #[test]
    fn what_waits_for_a_policy_hears_of_its_end_however_it_comes() {
        let store = Store::new(Evidence::new(100));
        let armed = |store: &Store| Arc::clone(&store.load().policies[0]);
        store.from_controller(snapshot(1, &[policy("a", "1h")]));
        let first = armed(&store);
        store.from_controller(snapshot(2, &[policy("a", "1h"), policy("b", "1h")]));
        assert!(!first.is_over(), "it goes on unchanged");
        store.from_controller(snapshot(3, &[policy("a", "2h")]));
        assert!(first.is_over() && !armed(&store).is_over());
        let second = armed(&store);
        store.disarm();
        assert!(second.is_over());
    }

    #[test]
    fn one_policy_can_be_disarmed_by_its_name_and_stays_so() {
        let store = Store::new(Evidence::new(100));
        store.from_controller(snapshot(1, &[policy("a", "1h"), policy("b", "1h")]));
        store.from_hand(vec![policy("mine", "1h")]).unwrap();
        assert!(store.disarm_named("a") && !store.disarm_named("a") && !store.disarm_named("none"));
        assert_eq!(names(&store), ["mine", "b"]);
        store.from_controller(snapshot(2, &[policy("a", "1h"), policy("b", "1h")]));
        assert!(store.disarm_named("mine"));
        assert_eq!(names(&store), ["b"]);
    }

    #[test]
    fn expiry_needs_nobody() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::new(Evidence::new(100));
            store.from_hand(vec![policy("short", "30ms"), policy("long", "1h")]).unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(200), store.expire()).await;
            assert_eq!(names(&store), ["long"]);
        });
    }
}

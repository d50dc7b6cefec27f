//! A cluster full of pods that are none of Steadfast's business costs the controller little. `STEADFAST_SCALE=full` (`just watched-pods`): 5,000 pods; else 300.

use std::fmt::Write as _;

use crate::{
    harness::{Cluster, Installation, cluster_alone},
    install::{Installed, install_anew},
    truth::pod_of,
};

/// Resident memory of the leader's process, in bytes.
fn resident(cluster: &Cluster, installed: &Installed<'_>) -> u64 {
    let leader = cluster.kubectl(&["--namespace", &installed.system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"]).expect("a lease");
    let uid = cluster.kubectl(&["--namespace", &installed.system, "get", "pod", leader.trim(), "-o", "jsonpath={.metadata.uid}"]).expect("the leader");
    let processes = std::fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let of_leader = processes.filter(|pid| pod_of(*pid).as_deref() == Some(uid.trim()));
    let resident = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    1024 * of_leader.filter_map(resident).max().expect("the leader's process")
}

#[test]
fn pods_of_others_cost_the_controller_little_memory() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if cluster.is_elsewhere() {
        eprintln!("not run: the processes of this cluster cannot be seen from here");
        return;
    }
    let count = if std::env::var("STEADFAST_SCALE").as_deref() == Ok("full") { 5_000 } else { 300 };
    let installed = install_anew(&cluster, &[]);
    let space = cluster.namespace("many");
    let before = resident(&cluster, &installed);
    // No scheduler takes them, so they stay what the API server holds of them, with as much text as pods have.
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        let mut pods = String::new();
        for number in chunk {
            let env: String = (0..40).fold(String::new(), |mut env, index| {
                let _ = write!(env, "{{name: SETTING_{index}, value: a value that somebody needs}}, ");
                env
            });
            let _ = write!(
                pods,
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: pod-{number}, labels: {{app: other, team: team-{}}}, annotations: {{note: {}}}}}, spec: {{schedulerName: nobody, containers: [{{name: \
                 server, image: example/none, env: [{env}]}}]}}}}\n",
                number % 50,
                "x".repeat(1000)
            );
        }
        let made = crate::harness::output(cluster.command("kubectl").args(["--namespace", space.name(), "create", "-f", "-"]), Some(&pods));
        made.unwrap_or_else(|why| panic!("{why}"));
    }
    // What is heard of late, too.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let after = resident(&cluster, &installed);
    let each = after.saturating_sub(before) as f64 / f64::from(count);
    println!("{count} pods: {:.1} MB before, {:.1} MB after, {:.1} kB for each", before as f64 / 1e6, after as f64 / 1e6, each / 1e3);
    // Of metadata alone it is 4 to 5 kB for each; a few pods do not fill what the allocator takes at once. With what their specs say it would be several times
    // that.
    let (most, each_most) = if count < 5_000 { (100_000_000, 12_000.0) } else { (200_000_000, 8_000.0) };
    assert!(after < most && each < each_most, "{before} → {after} bytes, {each:.0} for each; at most {most} and {each_most:.0} were promised");
}

//! One section of the page: rows that were seen, held against what stands there.

use std::{net::SocketAddr, path::PathBuf, sync::Mutex};

use super::peers::Pod;

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Directly,
    /// Through the sidecar with nothing armed.
    Relay,
    /// Through the sidecar with a policy armed that names another path.
    Stack,
}

/// Rows of one client and one server.
pub(super) struct Table {
    section: &'static str,
    rows: Vec<String>,
}

/// Tests write the page one at a time.
static PAGE: Mutex<()> = Mutex::new(());

impl Table {
    /// `section`: the heading on the page, which is made of the names of both.
    pub(super) fn of(section: &'static str) -> Self {
        Self { section, rows: Vec::new() }
    }

    /// What is seen through the sidecar is what is seen directly.
    pub(super) fn same(&mut self, pod: &Pod, what: &str, see: impl Fn(SocketAddr) -> String) {
        let [directly, relay, stack] = pod.ways().map(|(_, address)| see(address));
        assert!(!directly.is_empty(), "{}: {what}: nothing was seen directly", self.section);
        println!("{what}: {:.200}", directly.replace('\n', " ⏎ "));
        assert_eq!(relay, directly, "{}: {what}, through the relay", self.section);
        assert_eq!(stack, directly, "{}: {what}, through the stack", self.section);
        self.row(what, "the same", "the same");
    }

    /// The relay is not noticed, and the stack may be: `otherwise` says how, and `is` what is then seen through it.
    pub(super) fn otherwise(&mut self, pod: &Pod, what: &str, otherwise: &str, is: &str, see: impl Fn(SocketAddr) -> String) {
        let [directly, relay, stack] = pod.ways().map(|(_, address)| see(address));
        assert_eq!(relay, directly, "{}: {what}, through the relay", self.section);
        assert_ne!(stack, directly, "{}: {what}: the page says that the stack does otherwise", self.section);
        assert_eq!(stack, is, "{}: {what}, through the stack", self.section);
        self.row(what, "the same", otherwise);
    }

    pub(super) fn row(&mut self, what: &str, relay: &str, stack: &str) {
        self.rows.push(format!("| {what} | {relay} | {stack} |"));
    }

    /// Holds the page and what was seen together.
    pub(super) fn must_be_on_the_page(self) {
        let rows = format!("| What | Nothing armed | Armed for another path |\n|---|---|---|\n{}\n", self.rows.join("\n"));
        println!("## {}\n\n{rows}", self.section);
        let _one = PAGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/protocols.md");
        let page = std::fs::read_to_string(&file).unwrap();
        let heading = format!("\n## {}\n\n", self.section);
        let from = page.find(&heading).unwrap_or_else(|| panic!("docs/protocols.md has no section {:?}", self.section)) + heading.len();
        // Up to the empty line before the next heading. Prose may stand before the table.
        let to = page[from - 1..].find("\n## ").map_or(page.len(), |to| from - 1 + to);
        let from = page[from..to.max(from)].find("| What").map_or(to.max(from), |table| from + table);
        if std::env::var_os("STEADFAST_WRITE_DOCS").is_some() {
            let rest = page[to..].trim_start_matches('\n');
            let gap = if rest.is_empty() { "" } else { "\n" };
            std::fs::write(&file, [&page[..from], &rows, gap, rest].concat()).unwrap();
        } else {
            assert_eq!(&page[from..to], rows, "docs/protocols.md, {:?}: STEADFAST_WRITE_DOCS=1 writes it anew", self.section);
        }
    }
}

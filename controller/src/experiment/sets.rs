//! Finding golden sets by name or directory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use steadfast_golden_sets::{GoldenSet, set};

/// Where sets are looked for.
#[derive(Clone, Debug)]
pub struct Finder {
    /// Directories that hold sets by name, in the order in which they are asked. Without any, a cluster's sets are not looked for: they are in the target's namespace.
    pub shelves: Vec<PathBuf>,
    /// Directories in a file mean what they mean from here.
    pub work_dir: PathBuf,
}

impl Finder {
    /// Where the set is: a directory if `name` is one, else the first shelf that has it. `Err` says where it was looked for.
    pub fn find(&self, name: &str) -> Result<PathBuf, String> {
        let here = self.work_dir.join(name);
        if name.contains('/') || name.starts_with('.') {
            return if here.is_dir() { Ok(here) } else { Err(format!("there is no directory {}", here.display())) };
        }
        let shelf = self.shelves.iter().map(|shelf| shelf.join(name)).find(|path| path.is_dir());
        shelf.or_else(|| here.is_dir().then_some(here)).ok_or_else(|| {
            let shelves: Vec<String> = self.shelves.iter().map(|shelf| shelf.display().to_string()).collect();
            format!("no golden set of this name in {}: give its directory, or name the folder that holds it with --golden-sets", shelves.join(" or "))
        })
    }
}

/// A golden set that was found and read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub directory: PathBuf,
    pub set: Arc<GoldenSet>,
}

/// Sets by the name that the file gives them; each is read once.
#[derive(Clone, Debug, Default)]
pub struct Sets(BTreeMap<String, Loaded>);

impl Sets {
    pub fn get(&self, name: &str) -> Option<&Loaded> {
        self.0.get(name)
    }

    /// Finds and reads `name`, unless it has been.
    pub fn load(&mut self, name: &str, finder: &Finder) -> Result<(), String> {
        if !self.0.contains_key(name) {
            let directory = finder.find(name)?;
            let set = shared(read(&directory)?);
            self.0.insert(name.to_owned(), Loaded { directory, set });
        }
        Ok(())
    }
}

fn read(directory: &Path) -> Result<GoldenSet, String> {
    set::read(directory).map_err(|error| error.to_string())
}

/// Sets that somebody holds, by digest.
static HELD: Mutex<BTreeMap<String, Weak<GoldenSet>>> = Mutex::new(BTreeMap::new());

/// The same set is held once, however many runs and watches want it.
fn shared(set: GoldenSet) -> Arc<GoldenSet> {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|_, set| set.strong_count() > 0);
    let digest = set.digest().to_string();
    if let Some(known) = held.get(&digest).and_then(Weak::upgrade) {
        return known;
    }
    let set = Arc::new(set);
    held.insert(digest, Arc::downgrade(&set));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_many_want_is_held_once_and_no_longer_than_it_is_wanted() {
        let shelf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden-sets/sets");
        let finder = Finder { shelves: vec![shelf], work_dir: PathBuf::from("/") };
        let (mut one, mut other) = (Sets::default(), Sets::default());
        one.load("digits", &finder).unwrap();
        other.load("digits", &finder).unwrap();
        let (first, second) = (Arc::clone(&one.get("digits").unwrap().set), Arc::clone(&other.get("digits").unwrap().set));
        assert!(Arc::ptr_eq(&first, &second));
        let digest = first.digest().to_string();
        drop((one, other, first, second));
        assert!(HELD.lock().unwrap().get(&digest).is_none_or(|set| set.strong_count() == 0));
    }
}

//! Finding golden sets by name or directory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
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
            let set = read(&directory)?;
            self.0.insert(name.to_owned(), Loaded { directory, set: Arc::new(set) });
        }
        Ok(())
    }
}

fn read(directory: &Path) -> Result<GoldenSet, String> {
    set::read(directory).map_err(|error| error.to_string())
}

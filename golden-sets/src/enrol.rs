//! Enrolment: what one live server answers to a set, and how much its answers vary with batch and concurrency.
//!
//! Stored beside the set in `enrolled/<name>/`: `enrolled.yaml` and, in a folder that it names, the answers. Renewing writes a fresh folder of answers and
//! then replaces `enrolled.yaml` in one step, so a reader finds the old enrolment or the new one, and never half of each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use steadfast_api::{
    golden::{Compare, Decimal, EnrolledOutput, EnrolmentManifest, Noise, SampleSpec, Server},
    read::{from_yaml, to_yaml},
};

use crate::{
    compare::{Difference, Rules},
    set::{
        GoldenSet, MANIFEST_BYTES_MAX, SAMPLES_BYTES_MAX, SetError, arrange_outputs,
        files::{beside, create_directory, is_plain_name, read_text, replace, sync},
        read_tensors, write_tensors,
    },
    tensor::Tensor,
};

/// Replays of each sample that an enrolment needs at least: fewer tell too little of the noise.
pub const REPLAYS_MIN: u32 = 30;

/// How far beyond the largest difference seen the tolerance stands.
const HEADROOM: f64 = 4.0;

/// A server's own answers with the tolerances learnt from it.
#[derive(Clone, Debug)]
pub struct Enrolment {
    manifest: EnrolmentManifest,
    /// One answer a sample, in the set's order.
    answers: Vec<Vec<Tensor>>,
}

/// Why no enrolment came of it.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("sample {sample:?} was answered {replays} times; an enrolment needs at least {REPLAYS_MIN}")]
    TooFew { sample: String, replays: u32 },
    #[error("sample {sample:?}: {why}")]
    Answer { sample: String, why: String },
    #[error("sample {sample:?}: the server does not answer as the reference does: {difference}; mend the server, or enrol it with its difference accepted")]
    Differs { sample: String, difference: String },
}

/// Collects a server's answers. The caller replays each sample at least [`REPLAYS_MIN`] times, varying batch and concurrency.
#[derive(Debug)]
pub struct Enroller<'a> {
    set: &'a GoldenSet,
    rules: Rules,
    accept_difference: bool,
    first: Vec<Option<Vec<Tensor>>>,
    replays: Vec<u32>,
    noise: Vec<(f64, f64)>,
    offset: Vec<(f64, f64)>,
}

impl<'a> Enroller<'a> {
    /// `accept_difference`: also enrol a server whose answers are not the reference's (another precision, say); its distance is recorded.
    pub fn new(set: &'a GoldenSet, accept_difference: bool) -> Self {
        let (samples, outputs) = (set.samples().len(), set.manifest().outputs.len());
        Self {
            set,
            rules: set.rules(),
            accept_difference,
            first: vec![None; samples],
            replays: vec![0; samples],
            noise: vec![(0.0, 0.0); outputs],
            offset: vec![(0.0, 0.0); outputs],
        }
    }

    /// Takes in one answer to the sample at `index`.
    pub fn answer(&mut self, index: usize, answer: &[Tensor]) -> Result<(), EnrolError> {
        let Some(sample) = self.set.samples().get(index) else {
            return Err(EnrolError::Answer { sample: format!("#{index}"), why: format!("there are {} samples", self.first.len()) });
        };
        let name = || sample.name.clone();
        let answer = arrange_outputs(self.set, answer).map_err(|why| EnrolError::Answer { sample: name(), why })?;
        let stored = self.rules.compare(&sample.outputs, &answer);
        if let Some(difference) = stored.mismatch().filter(|difference| !self.accept_difference || difference.absolute.is_infinite()) {
            return Err(EnrolError::Differs { sample: name(), difference: difference.to_string() });
        }
        widen(&mut self.offset, &stored.outputs);
        match &self.first[index] {
            None => self.first[index] = Some(answer),
            Some(first) => {
                let comparison = self.rules.compare(first, &answer);
                if let Some(difference) = comparison.outputs.iter().find(|difference| difference.absolute.is_infinite()) {
                    return Err(EnrolError::Answer { sample: name(), why: format!("two answers cannot be compared: {difference}") });
                }
                widen(&mut self.noise, &comparison.outputs);
            }
        }
        self.replays[index] += 1;
        Ok(())
    }

    /// The enrolment; `time` is now, as RFC 3339 in UTC.
    pub fn finish(self, server: Server, time: String) -> Result<Enrolment, EnrolError> {
        let mut answers = Vec::with_capacity(self.first.len());
        for ((first, replays), sample) in self.first.into_iter().zip(&self.replays).zip(self.set.samples()) {
            match first {
                Some(first) if *replays >= REPLAYS_MIN => answers.push(first),
                _ => return Err(EnrolError::TooFew { sample: sample.name.clone(), replays: *replays }),
            }
        }
        let outputs = self.set.manifest().outputs.iter().zip(self.noise.iter().zip(&self.offset)).map(|(spec, (noise, offset))| EnrolledOutput {
            name: spec.name.clone(),
            noise: decimals(*noise),
            offset: decimals(*offset),
            compare: learnt(&spec.compare, *noise),
        });
        let samples = self.set.samples().iter().enumerate();
        let manifest = EnrolmentManifest {
            set: self.set.digest(),
            server,
            time,
            replays: self.replays.iter().copied().min().unwrap_or(0),
            outputs: outputs.collect(),
            // The folder of the answers is set when they are written.
            samples: samples
                .map(|(index, sample)| SampleSpec { name: sample.name.clone(), directory: format!("{index}"), tags: sample.tags.clone() })
                .collect(),
        };
        Ok(Enrolment { manifest, answers })
    }
}

fn widen(largest: &mut [(f64, f64)], differences: &[Difference]) {
    for (largest, difference) in largest.iter_mut().zip(differences) {
        // Relative lengths are infinite where the reference is all zero; then the absolute difference speaks alone.
        let relative = if difference.relative.is_finite() { difference.relative } else { 0.0 };
        *largest = (largest.0.max(difference.absolute), largest.1.max(relative));
    }
}

fn decimals((absolute, relative): (f64, f64)) -> Noise {
    Noise { absolute: Decimal::from_f64(absolute).unwrap_or_default(), relative: Decimal::from_f64(relative).unwrap_or_default() }
}

/// max(default, 4 × the largest difference seen), for every tolerance that a rule has.
fn learnt(compare: &Compare, (absolute_noise, relative_noise): (f64, f64)) -> Compare {
    let wider = |tolerance: &Decimal, noise: f64| {
        // The default keeps its own spelling.
        Decimal::from_f64(HEADROOM * noise).filter(|learnt| learnt.value() > tolerance.value()).unwrap_or_else(|| tolerance.clone())
    };
    match compare {
        Compare::Regression { absolute, relative } => Compare::Regression { absolute: wider(absolute, absolute_noise), relative: relative.clone() },
        Compare::Classification { absolute } => Compare::Classification { absolute: wider(absolute, absolute_noise) },
        Compare::Embedding { absolute, relative } => {
            Compare::Embedding { absolute: wider(absolute, absolute_noise), relative: wider(relative, relative_noise) }
        }
        // What is level follows from the scores' own learnt tolerance.
        Compare::Ranking { .. } | Compare::Exact {} => compare.clone(),
    }
}

impl Enrolment {
    pub const fn manifest(&self) -> &EnrolmentManifest {
        &self.manifest
    }

    /// One answer a sample, in the set's order.
    pub fn answers(&self) -> &[Vec<Tensor>] {
        &self.answers
    }

    /// The set's rules with the tolerances learnt.
    pub fn rules(&self, set: &GoldenSet) -> Rules {
        let learnt = |name: &str| self.manifest.outputs.iter().find(|output| output.name == name).map(|output| output.compare.clone());
        set.rules().with(learnt)
    }

    /// No two answers ever differed: one confirmed mismatch is proof.
    pub fn deterministic(&self) -> bool {
        self.manifest.outputs.iter().all(|output| output.noise.absolute.value() == 0.0)
    }

    /// Names of all enrolments of a set's directory, sorted.
    pub fn names(directory: &Path) -> Result<Vec<String>, SetError> {
        let parent = directory.join("enrolled");
        if !parent.exists() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&parent).map_err(SetError::io(&parent))? {
            let name = entry.map_err(SetError::io(&parent))?.file_name().to_string_lossy().into_owned();
            if is_plain_name(&name) && parent.join(&name).join("enrolled.yaml").exists() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Reads `enrolled/<name>` of the set's directory; refused when the set changed since.
    pub fn read(set: &GoldenSet, directory: &Path, name: &str) -> Result<Self, SetError> {
        let from = folder(directory, name)?;
        let read = || Self::read_once(set, &from);
        // Between reading the manifest and its answers another process may have renewed both: then the second try finds the new pair.
        read().or_else(|_| read())
    }

    fn read_once(set: &GoldenSet, from: &Path) -> Result<Self, SetError> {
        let file = from.join("enrolled.yaml");
        let manifest: EnrolmentManifest = from_yaml(&file.display().to_string(), &read_text(&file, MANIFEST_BYTES_MAX)?)?;
        let refuse = |why: String| SetError::broken(&file, why);
        if manifest.set != set.digest() {
            return Err(refuse(format!("set: was enrolled for {}, and the set is now {}; enrol the server anew", manifest.set, set.digest())));
        }
        if !manifest.samples.iter().map(|spec| &spec.name).eq(set.samples().iter().map(|sample| &sample.name)) {
            return Err(refuse("samples: are not those of the set".into()));
        }
        let known = |output: &EnrolledOutput| set.manifest().outputs.iter().any(|spec| spec.name == output.name && same_kind(&spec.compare, &output.compare));
        if let Some(output) = manifest.outputs.iter().find(|output| !known(output)) {
            return Err(refuse(format!("outputs: {:?} is not an output of the set, or compared as another kind there", output.name)));
        }
        let mut budget = SAMPLES_BYTES_MAX;
        let mut answers = Vec::with_capacity(manifest.samples.len());
        for spec in &manifest.samples {
            let directory = beside(from, &spec.directory).map_err(|why| refuse(format!("sample {:?}: directory: {why}", spec.name)))?;
            let tensors = read_tensors(&directory, "output", &mut budget)?;
            answers.push(arrange_outputs(set, &tensors).map_err(|why| SetError::broken(&directory, why))?);
        }
        Ok(Self { manifest, answers })
    }

    /// Writes `enrolled/<name>` of the set's directory, new or in place of an older one.
    pub fn write(&self, directory: &Path, name: &str) -> Result<(), SetError> {
        let into = folder(directory, name)?;
        fs::create_dir_all(&into).map_err(SetError::io(&into))?;
        let answers = format!("answers-{:016x}", rand::random::<u64>());
        create_directory(&into.join(&answers), |fresh| {
            for (spec, tensors) in self.manifest.samples.iter().zip(&self.answers) {
                let sample = fresh.join(last(&spec.directory));
                fs::create_dir(&sample).map_err(SetError::io(&sample))?;
                write_tensors(&sample, "output", tensors)?;
                sync(&sample)?;
            }
            Ok(())
        })?;
        let mut manifest = self.manifest.clone();
        for spec in &mut manifest.samples {
            spec.directory = format!("{answers}/{}", last(&spec.directory));
        }
        let text = to_yaml(&manifest).map_err(|why| SetError::broken(&into, why))?;
        replace(&into.join("enrolled.yaml"), text.as_bytes())?;
        remove_older(&into, &answers);
        Ok(())
    }
}

/// Answers of enrolments before this one; leftovers do no harm, so failing to remove them is no error.
fn remove_older(into: &Path, keep: &str) {
    for entry in fs::read_dir(into).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != keep && (name.starts_with("answers-") || name.starts_with(".answers-")) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn last(directory: &str) -> &str {
    directory.rsplit('/').next().unwrap_or(directory)
}

fn folder(directory: &Path, name: &str) -> Result<PathBuf, SetError> {
    let parent = directory.join("enrolled");
    if is_plain_name(name) {
        Ok(parent.join(name))
    } else {
        Err(SetError::broken(
            parent,
            format!("{name:?} is no name for an enrolment: use letters, digits, '-', '_' and '.', at most 63, not starting with a dot"),
        ))
    }
}

const fn same_kind(a: &Compare, b: &Compare) -> bool {
    matches!(
        (a, b),
        (Compare::Regression { .. }, Compare::Regression { .. })
            | (Compare::Classification { .. }, Compare::Classification { .. })
            | (Compare::Ranking { .. }, Compare::Ranking { .. })
            | (Compare::Embedding { .. }, Compare::Embedding { .. })
            | (Compare::Exact {}, Compare::Exact {})
    )
}

#[cfg(test)]
mod tests;

//! What a body consists of: pieces as they come, events, or messages of gRPC. Stalls lie between units, and a corrupted stream is changed unit by unit.

use bytes::Bytes;
use rand::Rng;
use steadfast_api::fault::Corrupt;

use crate::fault::{
    corrupt::{grpc, values::Change},
    events,
    messages::{self, Piece},
};

/// What a body consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// Nothing is known of it.
    #[default]
    Pieces,
    /// Of an event stream.
    Events,
    /// Of a gRPC call.
    Messages,
}

/// One of them, or a part of one.
pub struct Unit {
    pub bytes: Bytes,
    /// It is not the first part.
    pub goes_on: bool,
    /// It is all of it.
    whole: bool,
}

impl Unit {
    const fn whole(bytes: Bytes) -> Self {
        Self { bytes, goes_on: false, whole: true }
    }
}

/// What became of a unit that was to be corrupted.
pub enum Corrupted {
    Changed(Vec<Bytes>),
    /// There was nothing to change.
    Same,
    /// Why it could not be.
    Skipped(&'static str),
}

/// Cuts a body into its units.
pub enum Cutter {
    Pieces,
    Events(events::Splitter),
    Messages(messages::Splitter),
}

impl Cutter {
    /// `most`: bytes of one message that are kept until its end comes.
    pub fn new(units: Units, most: usize) -> Self {
        match units {
            Units::Pieces => Self::Pieces,
            Units::Events => Self::Events(events::Splitter::default()),
            Units::Messages => Self::Messages(messages::Splitter::new(most)),
        }
    }

    /// What `bytes` complete.
    pub fn push(&mut self, bytes: Bytes) -> Vec<Unit> {
        match self {
            Self::Pieces => vec![Unit::whole(bytes)],
            Self::Events(splitter) => splitter.push(&bytes).into_iter().map(Unit::whole).collect(),
            Self::Messages(splitter) => splitter.push(bytes).into_iter().map(Unit::from).collect(),
        }
    }

    /// Nothing waits for the rest of its unit.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Pieces => true,
            Self::Events(splitter) => splitter.is_empty(),
            Self::Messages(splitter) => splitter.is_empty(),
        }
    }

    /// What is left when the body ends.
    pub fn finish(&mut self) -> Option<Unit> {
        match self {
            Self::Pieces => None,
            Self::Events(splitter) => splitter.finish().map(Unit::whole),
            Self::Messages(splitter) => splitter.finish().map(Unit::from),
        }
    }

    /// Does to `unit` what `corrupt` says.
    pub fn corrupt(&self, unit: &Unit, corrupt: &Corrupt, rng: &mut impl Rng) -> Corrupted {
        let changed = match self {
            Self::Pieces => None,
            Self::Events(_) => corrupt.events.and_then(|change| events::change(&unit.bytes, change, corrupt.event_share, rng)),
            Self::Messages(_) if !unit.whole && !unit.goes_on => return Corrupted::Skipped("too-large"),
            Self::Messages(_) if !unit.whole => None,
            Self::Messages(_) if unit.bytes.first() != Some(&0) => return Corrupted::Skipped("content-encoding"),
            Self::Messages(_) => Change::of(corrupt).and_then(|change| Some(vec![grpc::change_streamed(&unit.bytes, change, rng)?.into()])),
        };
        changed.map_or(Corrupted::Same, Corrupted::Changed)
    }
}

impl From<Piece> for Unit {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Message(bytes) => Self::whole(bytes),
            Piece::Part { bytes, first } => Self { bytes, goes_on: !first, whole: false },
        }
    }
}

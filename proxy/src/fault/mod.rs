//! Faults: what is armed, who may ask, what falls on a request (decided once), and doing it.
//!
//! `policy` and `matching` hold policies as they are armed, `armed` keeps them, `budget` bounds them. `decide` says what falls on a request, from them or from its
//! `header`; `inject` does it: `corrupt` to values, `shape` (and `events`) to a body on its way, `link` to the connection itself, `memory`, `cpu` and `burners` beside.
//! `model` looks into requests for the model that they name, `messages` and `events` cut streams into what they consist of. `connection` is for what happens before there is a request.

pub mod armed;
pub mod budget;
pub mod burners;
pub mod check;
pub mod connection;
pub mod corrupt;
pub mod cpu;
pub mod decide;
pub mod draw;
pub mod envoy;
pub mod events;
pub mod header;
pub mod inject;
pub mod link;
pub mod matching;
pub mod memory;
pub mod messages;
pub mod model;
pub mod policy;
pub mod ring;
pub mod shape;
pub mod timer;

//! The sidecar as it runs: the real program in front of a real server, asked by real clients on 127.0.0.1.

mod command;
mod control;
mod corrupt;
mod drain;
mod exact;
mod floods;
mod harness;
mod header;
mod hold;
mod honest;
mod kinds;
mod limits;
mod matching;
mod page;
mod pass;
mod policy;
mod ports;
mod ready;
mod relay;
mod seam;
mod smuggling;
mod usage;

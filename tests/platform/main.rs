//! Does the local platform do what a cluster does, tell it truly, and leave nothing behind? With this build's `steadfast` as every process, and a real model.

mod burn;
mod leaves_nothing;
mod nodes;
mod pods;
mod requests;
mod stage;

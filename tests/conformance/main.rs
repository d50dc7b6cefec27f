//! Does `steadfast serve` speak the Open Inference Protocol v2 as its documents say, and live as a model server does? Over HTTP/1.1 and HTTP/2. And does anybody notice
//! the sidecar (`matrix`)?

#[path = "../golden/process.rs"]
mod process;

mod life;
mod matrix;
mod protocol;

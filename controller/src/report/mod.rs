//! A report's three forms: `report.json` (everything, with a published schema), `report.html` (for people), `junit.xml` (for CI). All are made from one
//! [`Report`](steadfast_api::report::Report) and from nothing else, so that an old `report.json` can be drawn again.

pub mod html;
pub mod json;
pub mod junit;
pub mod store;

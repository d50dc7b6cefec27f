//! What both this decoder and another one read, they read the same: the status and the size of the list, and so the table.
#![no_main]

use loona_hpack::Decoder;
use steadfast_fuzz::blocks;
use steadfast_proxy::fuzzing::Hpack;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (mut ours, mut theirs) = (Hpack::default(), Decoder::new());
    theirs.set_max_allowed_table_size(64 << 10);
    for block in blocks(data) {
        let (Some((status, size)), Ok(fields)) = (ours.read(block), theirs.decode(block)) else { return };
        assert_eq!(size, fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>(), "{fields:?}");
        let last = fields.iter().rev().find(|(name, _)| name == b":status");
        let theirs = last.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse::<u16>().ok());
        assert_eq!(status, theirs, "{fields:?}");
    }
});

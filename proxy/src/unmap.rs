//! Gives back what only the start needed. Reading flags, policies and metrics' names touches much of the program once, and every page that was ever touched counts as the
//! sidecar's memory until somebody asks the kernel to forget it: more than half of what an idle sidecar holds.
//!
//! Invariant: only mappings of files that this process cannot write and has never changed are forgotten; the kernel maps a page again when it is next needed.

use std::{fs, os::unix::ffi::OsStrExt};

use nix::libc;

/// Whose pages are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of the program and of its libraries: only before any thread runs that loads a library.
    Everybody,
    /// The program's own, at any time.
    Program,
}

/// Forgets the pages of unchanged, read-only file mappings. What is needed again comes back by itself, from the page cache. Of how many bytes.
pub fn unmap(whose: Whose) -> usize {
    // Without /proc nothing is given back, and nothing else is lost.
    let (Ok(smaps), Ok(program)) = (fs::read("/proc/self/smaps"), fs::read_link("/proc/self/exe")) else { return 0 };
    let program = (whose == Whose::Program).then(|| program.as_os_str().as_bytes());
    unchanged(&String::from_utf8_lossy(&smaps), program).into_iter().filter(|(start, end)| forget(*start, *end)).map(|(start, end)| end - start).sum()
}

/// Address ranges in `smaps` that are backed by a file (`of` it alone, where that is given), not writable, and have no page of this process's own.
fn unchanged(smaps: &str, of: Option<&[u8]>) -> Vec<(usize, usize)> {
    let (mut found, mut candidate) = (Vec::new(), None);
    let (mut own, mut told) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            // Bytes that were changed, in memory or swapped out.
            Some("Anonymous" | "Swap") => {
                told += 1;
                own |= words.next() != Some("0");
            }
            Some("VmFlags") => {
                found.extend(candidate.take().filter(|_| !own && told == 2));
                (own, told) = (false, 0);
            }
            Some(_) => {}
            None => {
                let permissions = words.next().unwrap_or_default();
                let path = line.find('/').map(|at| &line.as_bytes()[at..]);
                let range = first.split_once('-').and_then(|(start, end)| Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?)));
                candidate = range.filter(|_| path.is_some_and(|path| of.is_none_or(|of| of == path)) && matches!(permissions, "r-xp" | "r--p"));
                (own, told) = (false, 0);
            }
        }
    }
    found
}

fn forget(start: usize, end: usize) -> bool {
    // SAFETY: the kernel has told of this range as one private mapping of a file, not writable and without pages of our own, so every page in it reads the same when it is
    // mapped again. It is still that mapping: the program's own stay as they are for ever, and libraries', which the loader makes anew and changes while it loads one, are
    // asked for only while nobody loads any.
    #[expect(unsafe_code, reason = "no safe wrapper knows that these mappings are unchanged")]
    let result = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0-55e0 r-xp 00001000 fe:00 77 /bin/proxy
Rss: 16 kB
Anonymous: 0 kB
Swap: 0 kB
VmFlags: rd ex mr mw me
55e0-55f0 r--p 00002000 fe:00 77 /bin/proxy
Rss: 16 kB
Anonymous: 4 kB
Swap: 0 kB
VmFlags: rd mr mw me
55f0-5600 r--p 00002000 fe:00 77 /bin/relocated and swapped
Anonymous: 0 kB
Swap: 4 kB
VmFlags: rd mr mw me
5600-5610 rw-p 00003000 fe:00 77 /bin/proxy
Anonymous: 0 kB
Swap: 0 kB
VmFlags: rd wr mr mw me
7000-7010 r--s 00000000 fe:00 78 /shared
Anonymous: 0 kB
Swap: 0 kB
VmFlags: rd mr mw me
7010-7020 r-xp 00000000 00:00 0 [vdso]
Anonymous: 0 kB
Swap: 0 kB
VmFlags: rd ex mr mw me
7020-7030 r--p 00000000 00:00 0
Anonymous: 0 kB
Swap: 0 kB
VmFlags: rd mr mw me
7030-7040 r--p 00000000 fe:00 79 /lib/a library
Anonymous: 0 kB
Swap: 0 kB
VmFlags: rd mr mw me
";

    #[test]
    fn only_what_a_file_still_holds_is_forgotten() {
        assert_eq!(unchanged(SMAPS, None), [(0x55d0, 0x55e0), (0x7030, 0x7040)]);
        assert_eq!(unchanged(SMAPS, Some(b"/bin/proxy")), [(0x55d0, 0x55e0)]);
        assert_eq!(unchanged(&SMAPS.replace("Swap: 0 kB\n", ""), None), [], "a kernel that does not tell of swapped pages");
    }

    #[test]
    fn the_program_goes_on_with_less_memory() {
        let held = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            status.lines().find_map(|line| line.strip_prefix("RssFile:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap()
        };
        // Much of this program has been looked at.
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let ranges = unchanged(&text, None);
        assert!(ranges.len() >= 2, "{text}");
        let before = held();
        assert!(unmap(Whose::Program) > 1 << 20);
        let after = held();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}

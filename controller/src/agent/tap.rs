//! A TAP device: what the kernel sends by it is read here, frame by frame, and what is written here arrives in the kernel as from a network. It is gone as soon as
//! nobody holds it open.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    mem,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use nix::{
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use tokio::io::unix::AsyncFd;

/// More than any frame: 64 KiB of a packet, and its head.
pub(super) const FRAME_MAX: usize = 65_536 + 64;

/// `struct ifreq` of netdevice(7), as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: libc::c_short,
    rest: [u8; 22],
}

nix::ioctl_write_ptr_bad!(
    /// TUNSETIFF of `linux/if_tun.h`: makes the device that belongs to this file.
    tunsetiff,
    nix::request_code_write!(b'T', 202, mem::size_of::<libc::c_int>()),
    Request
);

pub(super) struct Tap {
    file: AsyncFd<File>,
    address: [u8; 6],
}

impl Tap {
    /// A device that takes what the Ethernet device `like` takes: its address, and packets as long. `number`: apart from other such devices.
    ///
    /// # Errors
    /// When there is no `/dev/net/tun` here, `like` is no Ethernet device, or the kernel refuses.
    pub(super) fn open(name: &str, like: &str, number: u8) -> io::Result<Self> {
        let of = |what: &str| fs::read_to_string(Path::new("/sys/class/net").join(like).join(what)).map(|text| text.trim().to_owned());
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("device {like} {why}"));
        if of("type")? != "1" {
            return Err(invalid("is no Ethernet device"));
        }
        let address = hardware_address(&of("address")?).ok_or_else(|| invalid("has no Ethernet address"))?;
        // One that forwards what comes by its network forwards what comes late.
        let forwarding = fs::read_to_string(Path::new("/proc/sys/net/ipv4/conf").join(like).join("forwarding")).is_ok_and(|value| value.trim() == "1");
        let mtu: u32 = of("mtu")?.parse().map_err(|_| invalid("has no MTU"))?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open("/dev/net/tun");
        let file = file.map_err(|error| io::Error::new(error.kind(), format!("/dev/net/tun: {error}")))?;
        let mut request = Request { name: [0; 16], flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the descriptor is open, and `Request` has the layout and at least the length of the `struct ifreq` that the kernel reads.
        #[expect(unsafe_code, reason = "a system call that nobody wraps")]
        let made = unsafe { tunsetiff(file.as_raw_fd(), &raw const request) };
        made.map_err(|error| io::Error::other(format!("the device {name} cannot be made: {error}")))?;
        let index = nix::net::if_::if_nametoindex(name)?;
        let route = Route::open()?;
        let told = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what} of device {name} cannot be set: {error}"));
        // Answers leave by another device than what they answer came by, and that is meant.
        let settings = [(IPV4_DEVCONF_RP_FILTER, 0), (IPV4_DEVCONF_FORWARDING, u32::from(forwarding))];
        let settings: Vec<u8> = settings.into_iter().flat_map(|(which, value)| attribute(which, &value.to_ne_bytes())).collect();
        let settings = nested(IFLA_AF_SPEC, &nested(AF_INET, &nested(IFLA_INET_CONF, &settings)));
        let ethernet = [attribute(IFLA_ADDRESS, &address), attribute(IFLA_MTU, &mtu.to_ne_bytes()), settings].concat();
        route.link(index, 0, &ethernet).map_err(told("address, MTU and settings"))?;
        let no_address = nested(IFLA_AF_SPEC, &nested(AF_INET6, &attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])));
        // Where there is no IPv6 there is nothing to be told.
        let _ = route.link(index, 0, &no_address);
        route.link(index, libc::IFF_UP as u32, &[]).map_err(told("the state"))?;
        // Where `rp_filter` of all devices is 2, one without an address takes nothing at all.
        route.address(index, [169, 254, 95, number]).map_err(told("an address"))?;
        // SAFETY: `File` owns its descriptor, answers with the same one every time, and is neither closed nor replaced before `AsyncFd` drops it.
        #[expect(unsafe_code, reason = "the safe constructor cannot know that the descriptor is owned")]
        let file = unsafe { AsyncFd::register(file) }?;
        Ok(Self { file, address })
    }

    /// One frame. What the kernel says of itself by this device (neighbour discovery, multicast) is passed over.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.file.readable().await?.try_io(|file| file.get_ref().read(buffer));
            match length {
                Ok(Ok(length)) if buffer.get(6..12) == Some(&self.address) || length < 14 => {}
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    /// The kernel takes it at once, or not at all.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<()> {
        self.file.get_ref().write(frame).map(drop)
    }
}

/// `02:00:5e:10:00:ff`
fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

// Of `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h` and `linux/ip.h`.
const RTM_NEWADDR: u16 = 20;
const RTM_SETLINK: u16 = 19;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;
const IFA_LOCAL: u16 = 2;
const RT_SCOPE_LINK: u8 = 253;

/// What rtnetlink(7) is asked, one thing at a time.
struct Route(OwnedFd);

impl Route {
    fn open() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?))
    }

    /// Sets `flags` (none are taken away) and attributes of a device.
    fn link(&self, index: u32, flags: u32, attributes: &[u8]) -> io::Result<()> {
        // struct ifinfomsg: family, padding, type, index, flags, which of them are meant.
        let head = [&[0; 4][..], &index.to_ne_bytes(), &flags.to_ne_bytes(), &flags.to_ne_bytes()].concat();
        self.ask(RTM_SETLINK, 0, &[&head, attributes].concat())
    }

    /// An IPv4 address of its own, with no network behind it.
    fn address(&self, index: u32, address: [u8; 4]) -> io::Result<()> {
        // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
        let head = [&[AF_INET as u8, 32, 0, RT_SCOPE_LINK][..], &index.to_ne_bytes()].concat();
        self.ask(RTM_NEWADDR, NLM_F_CREATE_EXCL, &[head, attribute(IFA_LOCAL, &address)].concat())
    }

    fn ask(&self, what: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        // struct nlmsghdr: length, type, flags, sequence, port.
        let length = 16 + body.len() as u32;
        let head = [&length.to_ne_bytes()[..], &what.to_ne_bytes(), &(NLM_F_REQUEST_ACK | flags).to_ne_bytes(), &[0; 8]].concat();
        send(self.0.as_raw_fd(), &[&head, body].concat(), MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match (answer.get(4..6), answer.get(16..20).filter(|_| length >= 20)) {
            (Some(kind), Some(code)) if kind == NLMSG_ERROR.to_ne_bytes() => match i32::from_ne_bytes(code.try_into().unwrap_or_default()) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(-code)),
            },
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of netlink that was not asked for")),
        }
    }
}

/// `struct nlattr`: length, type, value, and nothing up to a multiple of four.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut whole = [&(length as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    whole.resize(length.next_multiple_of(4), 0);
    whole
}

fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_as_long_as_they_say_and_begin_at_multiples_of_four() {
        assert_eq!(attribute(8, &[1]), [&5_u16.to_ne_bytes()[..], &8_u16.to_ne_bytes(), &[1, 0, 0, 0]].concat());
        let outer = nested(IFLA_AF_SPEC, &attribute(2, &[1, 2, 3, 4]));
        assert_eq!((outer.len(), u16::from_ne_bytes([outer[0], outer[1]]), u16::from_ne_bytes([outer[2], outer[3]])), (12, 12, IFLA_AF_SPEC | NESTED));
    }

    #[test]
    fn hardware_addresses_have_six_bytes() {
        assert_eq!(hardware_address("02:00:5e:10:00:ff"), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        assert!(["", "02:00:5e:10:00", "02:00:5e:10:00:ff:01", "02:00:5e:10:00:zz"].iter().all(|text| hardware_address(text).is_none()));
    }
}

//! TAP devices: a network interface whose other end is this program.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use rustix::ioctl::{Opcode, Updater, opcode};

use crate::error::LabError;
use crate::netns::Netns;

/// `TUNSETIFF` of `linux/if_tun.h`, which declares it with an int but takes an [`Request`].
const SET_INTERFACE: Opcode = opcode::write::<i32>(b'T', 202);
/// `IFF_TAP | IFF_NO_PI`: whole Ethernet frames and nothing before them.
const TAP_WITHOUT_HEADER: i16 = 0x1002;

/// `struct ifreq` as far as `TUNSETIFF` looks at it: name, flags, the rest of the union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// Makes a TAP interface in a namespace; it is gone when the file is closed. Reading does not block.
pub(crate) fn open(netns: &Netns, name: &str) -> Result<File, LabError> {
    let failed = |error: &dyn std::fmt::Display| {
        LabError::new(format_args!("TAP {name} in {}", netns.name()), error)
    };
    let made = netns.within(|| {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nonblocking)
            .open("/dev/net/tun")?;
        let mut request = Request { name: [0; 16], flags: TAP_WITHOUT_HEADER, rest: [0; 22] };
        for (slot, byte) in request.name.iter_mut().zip(name.bytes().take(15)) {
            *slot = byte;
        }
        set_interface(&file, &mut request)?;
        Ok::<File, std::io::Error>(file)
    })?;
    made.map_err(|error| failed(&error))
}

#[allow(unsafe_code, reason = "neither std nor rustix has a safe call for TUNSETIFF")]
fn set_interface(file: &File, request: &mut Request) -> rustix::io::Result<()> {
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which is 40 bytes on all platforms with
    // 64-bit pointers and 32 with 32-bit ones; `Request` has 40, its name ends with a zero byte, and every
    // bit pattern that the kernel may write into it is valid.
    unsafe { rustix::ioctl::ioctl(file, Updater::<SET_INTERFACE, Request>::new(request)) }
}

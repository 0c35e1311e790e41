//! A tunnel between two devices in one process: no socket, no thread, and a clock that this program moves.
//!
//! The wire loses the first handshake message. Nothing happens until the clock reaches what `poll_timeout` asks for; then
//! the device tries again, and the packet that waited for a session goes through.
//!
//! `cargo run --package adit-protocol --example tunnel`
#![expect(clippy::print_stdout, reason = "it shows what happens")]

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use adit_protocol::{Device, Endpoint, Instant, Now, Output, Prefix, PrivateKey};

/// Where the two are on the imagined wire.
const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        51820,
    ),
    SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)),
        51820,
    ),
];

/// Both devices and what is between them.
struct World {
    devices: [Device; 2],
    now: Now,
    /// Datagrams that the wire still loses.
    losses: u32,
}

impl World {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mut devices = [device()?, device()?];
        for (here, there) in [(0, 1), (1, 0)] {
            let key = devices[there].public_key().ok_or("no private key")?;
            let peer = devices[here].add_peer(key)?;
            devices[here].set_endpoint(peer, ADDRESSES[there]);
            let inner = [10, 0, 0, if there == 0 { 1 } else { 2 }];
            devices[here].add_allowed_ip(peer, Prefix::new(inner.into(), 32)?);
            devices[here].up();
        }
        let now = Now {
            instant: Instant::from_nanos(0),
            unix: Duration::from_secs(1_700_000_000),
        };
        Ok(Self {
            devices,
            now,
            losses: 1,
        })
    }

    /// Carries out what both devices ask for until neither asks for anything. Returns the inner packets that arrived.
    fn run(&mut self) -> Vec<(usize, Box<[u8]>)> {
        let mut arrived = Vec::new();
        loop {
            let mut idle = true;
            for here in [0, 1] {
                while let Some(output) = self.devices[here].poll_output() {
                    idle = false;
                    match output {
                        Output::Transmit { to, payload, .. } => self.carry(here, to, payload),
                        Output::FlushStaged { peer } => {
                            self.devices[here].flush_staged(self.now, peer);
                        }
                        Output::Packet { payload, .. } => arrived.push((here, payload)),
                        Output::Event(event) => self.say(here, &event.to_string()),
                        // For threads that move data by themselves; this program has none.
                        Output::SessionAdded { .. } | Output::SessionRemoved { .. } => {}
                    }
                }
            }
            if idle {
                return arrived;
            }
        }
    }

    /// The wire.
    fn carry(&mut self, from: usize, to: Endpoint, mut payload: Box<[u8]>) {
        let length = payload.len();
        if self.losses > 0 {
            self.losses -= 1;
            return self.say(from, &format!("{length} bytes to {}: lost", to.address));
        }
        self.say(from, &format!("{length} bytes to {}", to.address));
        let from = Endpoint::new(ADDRESSES[from]);
        for (device, address) in self.devices.iter_mut().zip(ADDRESSES) {
            if address == to.address {
                device.handle_datagram(self.now, from, &mut payload);
            }
        }
    }

    /// Moves the clock to the earliest moment that a device asks for.
    fn wait(&mut self) -> Result<(), Box<dyn Error>> {
        let timeouts = self
            .devices
            .iter()
            .filter_map(|device| device.poll_timeout());
        let next = timeouts.min().ok_or("nothing is waited for")?;
        self.now.unix += next.saturating_duration_since(self.now.instant);
        self.now.instant = next.max(self.now.instant);
        for device in &mut self.devices {
            device.handle_timeout(self.now);
        }
        Ok(())
    }

    fn say(&self, device: usize, what: &str) {
        let seconds = Duration::from_nanos(self.now.instant.as_nanos()).as_secs_f64();
        println!("{seconds:6.3} s  device {}: {what}", device + 1);
    }
}

fn device() -> Result<Device, getrandom::Error> {
    let mut key = [0; 32];
    getrandom::fill(&mut key)?;
    let mut device = Device::new(Box::new(rand_core::UnwrapErr(getrandom::SysRng)));
    device.set_private_key(Some(PrivateKey::from_bytes(key)));
    Ok(device)
}

/// An IPv4 header without payload, from 10.0.0.1 to 10.0.0.2; the device looks at version, length and addresses only.
fn packet() -> [u8; 20] {
    let mut packet = [0; 20];
    (packet[0], packet[3]) = (0x45, 20);
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut world = World::new()?;
    world.devices[0].send_packet(world.now, &packet())?;
    let mut arrived = world.run();
    while arrived.is_empty() {
        world.wait()?;
        arrived = world.run();
    }
    for (device, payload) in &arrived {
        world.say(*device, &format!("inner packet of {} bytes", payload.len()));
    }
    if arrived
        .iter()
        .any(|(at, payload)| *at != 1 || **payload != packet())
    {
        return Err("something else arrived than what was sent".into());
    }
    Ok(())
}

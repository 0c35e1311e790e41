//! What `wg set` and its kin do to the device: the settings of one operation, in order.

use adit_protocol::{PeerId, PublicKey};

use super::Control;
use crate::uapi::Errno;
use crate::uapi::request::Setting;

/// Whom the lines after a `public_key` are about.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// No `public_key` yet.
    Device,
    /// A peer that does not exist; the first line that changes it creates it.
    Missing(PublicKey),
    /// A peer of the device.
    Peer(PeerId),
    /// Nobody: the peer is removed, is ourselves, or must not be created.
    Nobody,
}

impl Control {
    /// Applies the settings in order up to the first that fails.
    pub(super) fn configure(&mut self, settings: Vec<Setting>) -> Result<(), Errno> {
        let mut target = Target::Device;
        for setting in settings {
            target = match setting {
                Setting::Peer(key) => {
                    self.create_if_missing(target);
                    self.select(key)
                }
                // Before anything that would create the peer.
                Setting::UpdateOnly if matches!(target, Target::Missing(_)) => Target::Nobody,
                Setting::UpdateOnly => target,
                Setting::Remove => {
                    if let Target::Peer(peer) = target {
                        self.device.remove_peer(peer);
                    }
                    Target::Nobody
                }
                Setting::PrivateKey(_)
                | Setting::ListenPort(_)
                | Setting::FirewallMark(_)
                | Setting::ReplacePeers => {
                    self.set_device(setting)?;
                    target
                }
                setting => {
                    let target = self.create_if_missing(target);
                    if let Target::Peer(peer) = target {
                        self.set_peer(peer, setting);
                    }
                    target
                }
            };
        }
        self.create_if_missing(target);
        Ok(())
    }

    fn select(&self, key: PublicKey) -> Target {
        if self.device.public_key() == Some(key) {
            return Target::Nobody;
        }
        self.device
            .peer_by_key(&key)
            .map_or(Target::Missing(key), Target::Peer)
    }

    fn create_if_missing(&mut self, target: Target) -> Target {
        let Target::Missing(key) = target else {
            return target;
        };
        // Fails for our own key only, which is ignored by rule.
        self.device
            .add_peer(key)
            .map_or(Target::Nobody, Target::Peer)
    }

    fn set_device(&mut self, setting: Setting) -> Result<(), Errno> {
        match setting {
            Setting::PrivateKey(key) => self.device.set_private_key(key),
            Setting::ListenPort(port) => self.set_listen_port(port)?,
            Setting::FirewallMark(mark) => self.set_firewall_mark(mark)?,
            Setting::ReplacePeers => self.device.remove_all_peers(),
            _ => {}
        }
        Ok(())
    }

    fn set_peer(&mut self, peer: PeerId, setting: Setting) {
        match setting {
            Setting::PresharedKey(key) => self.device.set_preshared_key(peer, key),
            Setting::Endpoint(address) => self.device.set_endpoint(peer, address),
            Setting::PersistentKeepalive(seconds) => {
                self.device.set_keepalive(peer, seconds);
            }
            Setting::ReplaceAllowedIps => self.device.replace_allowed_ips(peer),
            Setting::AllowedIp(prefix) => {
                self.device.add_allowed_ip(peer, prefix);
            }
            Setting::RemoveAllowedIp(prefix) => {
                self.device.remove_allowed_ip(peer, prefix);
            }
            _ => {}
        }
    }
}

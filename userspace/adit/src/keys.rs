//! `adit genkey`, `pubkey` and `genpsk`: the same input and output as `wg(8)`.

use std::io::{Read as _, Write as _};

use adit_protocol::PrivateKey;
use anyhow::{Context as _, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use zeroize::{Zeroize as _, Zeroizing};

/// 32 bytes from the operating system's generator.
fn random_key() -> Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *key).context("the operating system gave no random bytes")?;
    Ok(key)
}

fn print(key: &[u8; 32]) -> Result<()> {
    let mut line = Zeroizing::new(BASE64_STANDARD.encode(key));
    line.push('\n');
    std::io::stdout()
        .write_all(line.as_bytes())
        .context("cannot write the key to standard output")
}

/// Prints a new private key.
pub fn genkey() -> Result<()> {
    let mut key = random_key()?;
    // The clamping of RFC 7748, section 5, which wg genkey prints too.
    key[0] &= 248;
    key[31] = (key[31] & 127) | 64;
    print(&key)
}

/// Prints a new preshared key.
pub fn genpsk() -> Result<()> {
    print(&*random_key()?)
}

/// Reads a private key from standard input and prints its public key.
pub fn pubkey() -> Result<()> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin()
        .take(1024)
        .read_to_string(&mut text)
        .context("cannot read a private key from standard input")?;
    let key = decode(text.trim())?;
    print(PrivateKey::from_bytes(*key).public_key().as_bytes())
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>> {
    let mut bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new);
    bytes.zeroize();
    let Ok(key) = key else {
        bail!("standard input is not a key: expected 44 characters of base64 (32 bytes)");
    };
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_bytes_of_base64_are_a_key() {
        assert!(decode("").is_err());
        assert!(decode("AAAA").is_err());
        assert!(decode("not base64 at all").is_err());
        assert_eq!(*decode(&BASE64_STANDARD.encode([7; 32])).unwrap(), [7; 32]);
    }
}

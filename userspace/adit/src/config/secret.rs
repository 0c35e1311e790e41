//! Keeping keys out of messages.
//!
//! What is drawn is a copy of the text in which everything that is or may be a secret key is stars, as many as it has
//! bytes, so that positions stay what they are.

use super::line::{Line, Piece, lines};

/// The two keys whose values are secret.
const SECRETS: [&str; 2] = ["PrivateKey", "PresharedKey"];
/// A run of base64 characters of this length may be a key, whole or cut.
const SUSPICIOUS: usize = 24;

/// Whether a word may have been meant for one of the secret keys.
pub(super) fn looks_secret(word: &str) -> bool {
    let word: String = word.split_whitespace().collect();
    let word = word.to_ascii_lowercase();
    word.contains("private")
        || word.contains("shared")
        || word.contains("secret")
        || SECRETS
            .iter()
            .any(|key| strsim::damerau_levenshtein(&key.to_ascii_lowercase(), &word) <= 3)
}

/// The text with stars in place of what may be secret. Of the same length, with the same lines.
pub(super) fn masked(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let mut public = Vec::new();
    for line in lines(text) {
        match line {
            Line::Setting { key, value, .. } if looks_secret(key.text) => hide(&mut bytes, value),
            Line::Setting { key, value, .. } if key.text.eq_ignore_ascii_case("PublicKey") => {
                public.push(value.span());
            }
            Line::Other(piece) => {
                let words = piece.split(|c: char| c.is_whitespace() || c == ':');
                if words.first().is_some_and(|word| looks_secret(word.text)) {
                    words[1..].iter().for_each(|word| hide(&mut bytes, *word));
                }
            }
            _ => {}
        }
    }
    // Comments are among the lines drawn, and a key may stand anywhere: under a wrong name, on a line of its own.
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    let mut start = 0;
    while start < text.len() {
        let length = text.as_bytes()[start..]
            .iter()
            .take_while(|byte| is_base64(byte))
            .count();
        let run = start..start + length;
        if length >= SUSPICIOUS && !public.iter().any(|span| span.contains(&run.start)) {
            bytes[run].fill(b'*');
        }
        start += length + 1;
    }
    // Whole characters are replaced, each by ASCII.
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hide(bytes: &mut [u8], piece: Piece<'_>) {
    bytes[piece.span()].fill(b'*');
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNftft3dYgqsGgXrcPkPk=";

    #[test]
    fn keys_are_stars_wherever_they_are() {
        for before in [
            "PrivateKey = ",
            "privatekey=",
            "PrivteKey = ",
            "Preshared Key = ",
            "PSK = ",
            "PrivateKey ",
            "PrivateKey: ",
            "",
            "# PrivateKey = ",
            "Address = ",
            "PostUp = wg set %i private-key <(echo ",
            "PublicKey = x\n",
        ] {
            let text = format!("[Interface]\n{before}{KEY}\n");
            let masked = masked(&text);
            assert_eq!(masked.len(), text.len());
            assert_eq!(masked.lines().count(), text.lines().count());
            assert!(!masked.contains(&KEY[..8]), "{masked}");
        }
    }

    #[test]
    fn short_and_odd_values_of_secret_keys_are_stars_too() {
        assert_eq!(masked("PrivateKey = abc"), "PrivateKey = ***");
        assert_eq!(masked("PrivateKey = é x"), "PrivateKey = ****");
        assert_eq!(masked("PrivateKey abc def"), "PrivateKey *** ***");
    }

    #[test]
    fn what_is_public_stays() {
        let text = format!("PublicKey = {KEY}\nEndpoint = vpn.example.org:51820\n");
        assert_eq!(masked(&text), text);
    }
}

//! The soak of `cargo xtask soak`, half a minute long.

use std::time::Duration;

use adit_tests::soak::Soak;
use anyhow::Result;

#[test]
fn half_a_minute() -> Result<()> {
    let soak = Soak {
        duration: Duration::from_secs(30),
        seed: 1,
    };
    let report = soak.run()?;
    report.check()
}

//! Runs a program for which the kernel lacks something: `adit-refuse RULE… -- PROGRAM ARGUMENT…`.
//!
//! A rule is `CALL/ERRNO` and further parts `ARGUMENT,MASK,VALUE`, all decimal numbers: the system call fails with that
//! errno if all of its arguments named, masked, have these values. Whatever the program starts has the same rules.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let end = arguments.iter().position(|word| word == "--");
    let (rules, program) = arguments.split_at(end.context("no --")?);
    for rule in rules {
        refuse(rule).with_context(|| rule.clone())?;
    }
    let [_, program, arguments @ ..] = program else {
        bail!("no program");
    };
    let failed = Command::new(program).args(arguments).exec();
    Err(failed).with_context(|| program.clone())
}

/// Each rule is a filter of its own, since a filter has one errno.
fn refuse(rule: &str) -> Result<()> {
    let mut parts = rule.split('/');
    let mut number = || parts.next().context("incomplete").map(str::parse::<u32>);
    let (call, errno) = (number()??, number()??);
    let mut conditions = Vec::new();
    for part in parts {
        let numbers: Result<Vec<u64>, _> = part.split(',').map(str::parse).collect();
        let numbers = numbers?;
        let [argument, mask, value] = numbers[..] else {
            bail!("{part}: three numbers");
        };
        conditions.push(SeccompCondition::new(
            u8::try_from(argument)?,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(mask),
            value,
        )?);
    }
    let rules = if conditions.is_empty() {
        Vec::new()
    } else {
        vec![SeccompRule::new(conditions)?]
    };
    let filter = SeccompFilter::new(
        BTreeMap::from([(call.into(), rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into()?,
    )?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

//! The maps. All but `xsks` carry BTF; the kernel refuses BTF on an XSKMAP.

use adit_ebpf::{
    Bucket, Config, Device, DropCounters, DropReason, FlowCounters, FlowKey, ListenerKey,
    ListenerValue, MAX_DEVICES, MAX_FLOWS, MAX_LISTENERS, MAX_SESSIONS, MAX_SLOTS, MAX_SOURCES,
    SessionKey, SessionValue, SourceKey,
};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray},
    macros::{btf_map, map},
    maps::XskMap,
};

#[btf_map(name = "flows")]
pub(crate) static FLOWS: LruPerCpuHashMap<FlowKey, FlowCounters, { MAX_FLOWS as usize }> =
    LruPerCpuHashMap::new();

#[btf_map(name = "sessions")]
pub(crate) static SESSIONS: HashMap<
    SessionKey,
    SessionValue,
    { MAX_SESSIONS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map(name = "listeners")]
pub(crate) static LISTENERS: HashMap<
    ListenerKey,
    ListenerValue,
    { MAX_LISTENERS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map(name = "heard")]
pub(crate) static HEARD: HashMap<
    ListenerKey,
    u32,
    { MAX_LISTENERS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map(name = "drops")]
pub(crate) static DROPS: PerCpuArray<DropCounters, { DropReason::COUNT as usize }> =
    PerCpuArray::new();

#[btf_map(name = "config")]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();

#[btf_map(name = "epoch")]
pub(crate) static EPOCH: Array<u64, 1> = Array::new();

#[btf_map(name = "unclaimed")]
pub(crate) static UNCLAIMED: Array<u64, 1> = Array::new();

#[btf_map(name = "devices")]
pub(crate) static DEVICES: HashMap<u32, Device, { MAX_DEVICES as usize }> = HashMap::new();

/// Buckets of sources; the least recently used go first.
pub(crate) type Sources = LruHashMap<SourceKey, Bucket, { MAX_SOURCES as usize }>;

#[btf_map(name = "sources")]
pub(crate) static SOURCES: Sources = LruHashMap::new();

#[btf_map(name = "bare_sources")]
pub(crate) static BARE_SOURCES: Sources = LruHashMap::new();

#[btf_map(name = "common")]
pub(crate) static COMMON: Array<Bucket, 2> = Array::new();

#[btf_map(name = "filtered")]
pub(crate) static FILTERED: PerCpuArray<u64, 1> = PerCpuArray::new();

#[map(name = "xsks")]
pub(crate) static XSKS: XskMap = XskMap::with_max_entries(MAX_SLOTS, 0);

//! What happened before what in a block: vector clocks.
//!
//! An access is marked with who made it and the epoch of its warp. It lies before another access if the other's warp knows of that
//! epoch. Knowledge travels by what synchronises: barriers, barrier objects, `bar.warp.sync`. Besides the threads there are agents that
//! access shared memory: the copy engine for each barrier object, the tensor cores for each warpgroup.
//!
//! A second vector says which writes a proxy fence has made visible to these agents.

use crate::lanes::{LANES, lanes_of};

/// Agents of the copy engine, one for each barrier object; those of further objects share one.
const COPY_AGENTS: usize = 64;
/// Warpgroups of a block.
pub(crate) const WARPGROUPS: usize = 8;

/// A thread of the block, or an agent.
pub(crate) type Who = u32;

/// Knowledge that an object passes on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    known: Vec<u32>,
    fenced: Vec<u32>,
}

impl Published {
    /// Adds what another object passes on.
    pub(crate) fn join(&mut self, other: &Self) {
        join(&mut self.known, &other.known);
        join(&mut self.fenced, &other.fenced);
    }

    /// Passes on nothing any more.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
        self.fenced.clear();
    }

    /// Adds an agent's epoch.
    pub(crate) fn add(&mut self, who: Who, epoch: u32) {
        let who = who as usize;
        if self.known.len() <= who {
            self.known.resize(who + 1, 0);
        }
        self.known[who] = self.known[who].max(epoch);
    }
}

fn join(to: &mut Vec<u32>, from: &[u32]) {
    if to.len() < from.len() {
        to.resize(from.len(), 0);
    }
    for (to, &from) in to.iter_mut().zip(from) {
        *to = (*to).max(from);
    }
}

/// The clocks of a block.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    threads: usize,
    /// For each warp, the epoch of each thread and agent that it knows of.
    known: Vec<Vec<u32>>,
    /// For each warp, the epoch of each thread up to which writes are fenced.
    fenced: Vec<Vec<u32>>,
    /// The epoch of each warp.
    epochs: Vec<u32>,
    /// The epoch of each agent.
    agents: Vec<u32>,
}

impl Clocks {
    /// Begins a block of `warps` warps.
    pub(crate) fn reset(&mut self, warps: usize) {
        self.threads = warps * LANES;
        let width = self.threads + WARPGROUPS + COPY_AGENTS;
        for vectors in [&mut self.known, &mut self.fenced] {
            vectors.resize(warps, Vec::new());
            for vector in vectors {
                vector.clear();
                vector.resize(width, 0);
            }
        }
        self.epochs.clear();
        self.epochs.resize(warps, 1);
        self.agents.clear();
        self.agents.resize(WARPGROUPS + COPY_AGENTS, 0);
    }

    /// The epoch of a warp.
    #[inline(always)]
    pub(crate) fn epoch(&self, warp: usize) -> u32 {
        self.epochs[warp]
    }

    /// Whether a warp knows of an epoch of a thread or agent.
    #[inline(always)]
    pub(crate) fn knows(&self, warp: usize, who: Who, epoch: u32) -> bool {
        self.known[warp][who as usize] >= epoch
    }

    /// Whether a warp knows that what a thread wrote in an epoch was fenced for the asynchronous proxy. Agents need no fence.
    pub(crate) fn knows_fenced(&self, warp: usize, who: Who, epoch: u32) -> bool {
        who as usize >= self.threads || self.fenced[warp][who as usize] >= epoch
    }

    /// Lanes of a warp pass on what they know and did.
    pub(crate) fn release(&mut self, warp: usize, lanes: u32, to: &mut Published) {
        join(&mut to.known, &self.known[warp]);
        join(&mut to.fenced, &self.fenced[warp]);
        let first = warp * LANES;
        for lane in lanes_of(lanes) {
            to.known[first + lane] = self.epochs[warp];
        }
        self.epochs[warp] += 1;
    }

    /// A warp learns.
    pub(crate) fn acquire(&mut self, warp: usize, from: &Published) {
        join(&mut self.known[warp], &from.known);
        join(&mut self.fenced[warp], &from.fenced);
    }

    /// Lanes of a warp learn of each other.
    pub(crate) fn join_lanes(&mut self, warp: usize, lanes: u32) {
        let first = warp * LANES;
        for lane in lanes_of(lanes) {
            self.known[warp][first + lane] = self.epochs[warp];
        }
        self.epochs[warp] += 1;
    }

    /// Lanes of a warp make what they know of visible to the asynchronous proxy.
    pub(crate) fn fence(&mut self, warp: usize, lanes: u32) {
        let known = &self.known[warp];
        join(&mut self.fenced[warp], known);
        let first = warp * LANES;
        for lane in lanes_of(lanes) {
            self.fenced[warp][first + lane] = self.epochs[warp];
        }
        self.epochs[warp] += 1;
    }

    /// The agent of a warpgroup's tensor cores.
    pub(crate) fn tensor_agent(&self, group: usize) -> Who {
        (self.threads + group.min(WARPGROUPS - 1)) as Who
    }

    /// The agent of the copy engine for the barrier object of this number.
    pub(crate) fn copy_agent(&self, number: usize) -> Who {
        (self.threads + WARPGROUPS + number.min(COPY_AGENTS - 1)) as Who
    }

    /// A new epoch of an agent.
    pub(crate) fn tick(&mut self, agent: Who) -> u32 {
        let epoch = &mut self.agents[agent as usize - self.threads];
        *epoch += 1;
        *epoch
    }

    /// The epoch of an agent.
    pub(crate) fn agent_epoch(&self, agent: Who) -> u32 {
        self.agents[agent as usize - self.threads]
    }

    /// A warp learns of an agent's epoch.
    pub(crate) fn learn(&mut self, warp: usize, agent: Who, epoch: u32) {
        let known = &mut self.known[warp][agent as usize];
        *known = (*known).max(epoch);
    }
}

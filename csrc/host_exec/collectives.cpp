// SPDX-License-Identifier: Apache-2.0
#include "host_exec/collectives.h"

namespace host_exec {
namespace {

using List = std::vector<std::unique_ptr<Rendezvous>>;

void transfer(List& from, List& to, const Rendezvous* r) {
  for (auto& entry : from)
    if (entry.get() == r) {
      to.push_back(std::move(entry));
      entry = std::move(from.back());
      from.pop_back();
      return;
    }
}

Rendezvous& open(Warp& warp, const Site& site, unsigned mask) {
  if (warp.spare.empty()) warp.spare.push_back(std::make_unique<Rendezvous>());
  warp.gathering.push_back(std::move(warp.spare.back()));
  warp.spare.pop_back();
  Rendezvous& r = *warp.gathering.back();
  r.site = site;
  r.mask = r.unread = mask;
  r.arrived = 0;
  return r;
}

// The meeting this lane joins: one of the same mask and operation, or none yet.
Rendezvous* find(Warp& warp, const Thread& thread, const Site& site, unsigned mask) {
  for (auto& r : warp.gathering) {
    if (!(r->mask & mask)) continue;
    if (r->mask == mask && std::strcmp(r->site.operation, site.operation) == 0) return r.get();
    fail("divergent warp: lane " + std::to_string(thread.lane()) + " of warp " + std::to_string(thread.warp()) +
         " is at " + to_string(site) + " while other lanes of its mask wait at " + to_string(r->site));
  }
  return nullptr;
}

}  // namespace

Rendezvous& enter(const Site& site, unsigned mask, const void* value, size_t bytes, bool& last) {
  Block& block = Block::current();
  Warp& warp = block.warp();
  const Thread& thread = *block.thread;
  const unsigned me = 1u << thread.lane();
  if (!(mask & me)) fail(to_string(site) + ": the calling lane is not in its mask");
  if (mask & ~warp.live) fail(to_string(site) + ": the mask names lanes that have exited or do not exist");
  Rendezvous* r = find(warp, thread, site, mask);
  if (!r) r = &open(warp, site, mask);
  std::memcpy(r->slots.bytes[thread.lane()], value, bytes);
  r->arrived |= me;
  last = r->arrived == mask;
  if (!last) block.suspend(site);
  return *r;
}

void complete(Rendezvous& r) {
  Block& block = Block::current();
  Warp& warp = block.warp();
  transfer(warp.gathering, warp.reading, &r);
  const int first = block.thread->linear & ~(kWarpSize - 1);
  for (unsigned others = r.mask & ~(1u << block.thread->lane()); others; others &= others - 1)
    block.make_ready(first + __builtin_ctz(others));
}

void leave(Rendezvous& r) {
  Warp& warp = Block::current().warp();
  r.unread &= ~(1u << Block::current().thread->lane());
  if (r.unread == 0) transfer(warp.reading, warp.spare, &r);
}

}  // namespace host_exec

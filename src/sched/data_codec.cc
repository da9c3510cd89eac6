#include "llmd/sched/data_codec.h"

namespace llmd::sched {

const DataCodecs& DataCodecs::Builtin() {
  static const DataCodecs& builtin = *[] {
    auto* codecs = new DataCodecs;
    codecs->Add<PrefixMatch>();
    codecs->Add<InFlightLoad>();
    codecs->Add<UncachedRequestTokens>();
    codecs->Add<LatencyPrediction>();
    return codecs;
  }();
  return builtin;
}

const DataCodec* DataCodecs::Find(std::string_view data_type, const std::type_info& type) const {
  for (auto it = codecs_.rbegin(); it != codecs_.rend(); ++it) {
    if (it->data_type == data_type && *it->type == type) return &*it;
  }
  return nullptr;
}

}  // namespace llmd::sched

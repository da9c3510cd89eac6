// Filters on the stages an endpoint serves: decode-filter, prefill-filter, encode-filter. (spec:
// scheduling.md 2.1)
#include <memory>
#include <utility>

#include "src/sched/builtin_plugins.h"

namespace llmd::sched {
namespace {

class RoleFilter final : public Plugin, public Filter {
 public:
  RoleFilter(std::string type, std::string name, Role role, DropReason reason)
      : Plugin(std::move(type), std::move(name)), role_(role), reason_(reason) {}

  void Apply(Context& context, std::span<const Position> candidates,
             std::span<DropReason> dropped) const override {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if ((context.pool[candidates[i]].identity->roles & role_) == 0) dropped[i] = reason_;
    }
  }

 private:
  Role role_;
  DropReason reason_;
};

void RegisterRole(PluginRegistry& registry, std::string_view type, Role role, DropReason reason) {
  MustRegister(registry, type,
               [role, reason](PluginBuilder& builder) -> absl::StatusOr<std::unique_ptr<Plugin>> {
                 ParameterReader read = builder.Read();
                 if (absl::Status status = read.Finish(); !status.ok()) return status;
                 return std::make_unique<RoleFilter>(builder.type(), builder.name(), role, reason);
               });
}

}  // namespace

void RegisterRoleFilters(PluginRegistry& registry) {
  RegisterRole(registry, "decode-filter", kRoleDecode, "role does not decode");
  RegisterRole(registry, "prefill-filter", kRolePrefill, "role does not prefill");
  RegisterRole(registry, "encode-filter", kRoleEncode, "role does not encode");
}

}  // namespace llmd::sched

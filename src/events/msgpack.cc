#include "src/events/msgpack.h"

namespace llmd::events::msgpack {

bool Reader::ReadWideHead(std::uint8_t c, Head& head) {
  switch (c) {
    case 0xc0:
      return Small(head, Type::kNil, 0);
    case 0xc2:
    case 0xc3:
      return Small(head, Type::kBool, c & 1);
    case 0xc4:
      return Wide<std::uint8_t>(head, Type::kBinary);
    case 0xc5:
      return Wide<std::uint16_t>(head, Type::kBinary);
    case 0xc6:
      return Wide<std::uint32_t>(head, Type::kBinary);
    case 0xc7:
    case 0xc8:
    case 0xc9: {
      const bool ok = c == 0xc7   ? Wide<std::uint8_t>(head, Type::kExtension)
                      : c == 0xc8 ? Wide<std::uint16_t>(head, Type::kExtension)
                                  : Wide<std::uint32_t>(head, Type::kExtension);
      head.bits += 1;  // the type byte
      return ok;
    }
    case 0xca:
      if (!Wide<std::uint32_t>(head, Type::kFloat)) return false;
      head.bits = std::bit_cast<std::uint64_t>(
          static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(head.bits))));
      return true;
    case 0xcb:
      return Wide<std::uint64_t>(head, Type::kFloat);
    case 0xcc:
      return Wide<std::uint8_t>(head, Type::kUint);
    case 0xcd:
      return Wide<std::uint16_t>(head, Type::kUint);
    case 0xce:
      return Wide<std::uint32_t>(head, Type::kUint);
    case 0xcf:
      return Wide<std::uint64_t>(head, Type::kUint);
    case 0xd0:
      return WideSigned<std::int8_t>(head);
    case 0xd1:
      return WideSigned<std::int16_t>(head);
    case 0xd2:
      return WideSigned<std::int32_t>(head);
    case 0xd3:
      return WideSigned<std::int64_t>(head);
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
      return Small(head, Type::kExtension, (1u << (c - 0xd4)) + 1);
    case 0xd9:
      return Wide<std::uint8_t>(head, Type::kString);
    case 0xda:
      return Wide<std::uint16_t>(head, Type::kString);
    case 0xdb:
      return Wide<std::uint32_t>(head, Type::kString);
    case 0xdc:
      return Wide<std::uint16_t>(head, Type::kArray);
    case 0xdd:
      return Wide<std::uint32_t>(head, Type::kArray);
    case 0xde:
      return Wide<std::uint16_t>(head, Type::kMap);
    case 0xdf:
      return Wide<std::uint32_t>(head, Type::kMap);
    default:
      return false;  // 0xc1
  }
}

}  // namespace llmd::events::msgpack

// Products of bfloat16 or byte matrices in AMX tiles: sixteen rows of 64 bytes, multiplied by one instruction.
//
// A tile of the left matrix is 16 rows of 16 words (a word: two bfloat16 numbers side by side along the inner
// dimension), one of the right matrix 16 words deep and 16 columns wide, which is exactly how products.h lays words out;
// their product is added to a tile of 16 x 16 float32 sums. Four tiles of sums, two of the left and two of the right
// matrix fill the eight there are.
//
// The instructions are written in assembly with a memory clobber: the compiler's own intrinsics let it move or drop
// stores to what a tile is loaded from (GCC bug 114098). Who else in this process uses tiles (oneDNN does) finds their
// configuration as it was. With LEVERET_EMULATED_TILES the instructions are plain C++, so that any processor can test
// what is done with them.
#pragma once

#include <cstdint>
#include <cstring>

struct TileConfig {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "what the processor reads");

#if defined(LEVERET_EMULATED_TILES)

static thread_local uint32_t emulated[8][16][16];

static inline float emulated_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void emulated_dot(uint32_t (&sum)[16][16], const uint32_t (&left)[16][16], const uint32_t (&right)[16][16]) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float total = emulated_float(sum[m][n]);
            for (int k = 0; k < 16; k++) {
                total += emulated_float(left[m][k] << 16) * emulated_float(right[k][n] << 16);
                total += emulated_float(left[m][k] & 0xffff0000u) * emulated_float(right[k][n] & 0xffff0000u);
            }
            std::memcpy(&sum[m][n], &total, sizeof total);
        }
}

static inline void emulated_byte_dot(uint32_t (&sum)[16][16], const uint32_t (&left)[16][16],
                                     const uint32_t (&right)[16][16]) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++)
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 32; j += 8)
                    sum[m][n] += uint32_t(int32_t(int8_t(left[m][k] >> j)) * int32_t(uint8_t(right[k][n] >> j)));
}

#define TILE_ZERO(tile) std::memset(emulated[tile], 0, sizeof emulated[tile])
#define TILE_LOAD(tile, from, stride) \
    for (int row = 0; row < 16; row++) std::memcpy(emulated[tile][row], (const char*)(from) + row * (stride), 64)
#define TILE_STORE(tile, to, stride) \
    for (int row = 0; row < 16; row++) std::memcpy((char*)(to) + row * (stride), emulated[tile][row], 64)
#define TILE_DOT(sum, left, right) emulated_dot(emulated[sum], emulated[left], emulated[right])
#define TILE_DOT_BYTES(sum, left, right) emulated_byte_dot(emulated[sum], emulated[left], emulated[right])

static inline bool may_use_tiles() { return true; }
static inline void store_tile_config(TileConfig&) {}
static inline void load_tile_config(const TileConfig&) {}
static inline void release_tiles() {}

#else

#include <sys/syscall.h>
#include <unistd.h>

#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(int64_t(stride)) : "memory")
#define TILE_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define TILE_DOT(sum, left, right) \
    __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sum ::: "memory")
#define TILE_DOT_BYTES(sum, left, right) \
    __asm__ volatile("tdpbsud %%tmm" #right ", %%tmm" #left ", %%tmm" #sum ::: "memory")

// Linux keeps room for a thread's tiles only in processes that have asked for it.
static inline bool may_use_tiles() {
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
static inline void store_tile_config(TileConfig& config) { __asm__ volatile("sttilecfg %0" : "=m"(config)::"memory"); }
static inline void load_tile_config(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
static inline void release_tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

#endif

// While it lives, this thread has eight tiles of 16 rows of 64 bytes.
class Tiles {
  public:
    Tiles() {
        store_tile_config(before);
        TileConfig mine;
        mine.palette = 1;
        for (int tile = 0; tile < 8; tile++) mine.bytes[tile] = 64, mine.rows[tile] = 16;
        load_tile_config(mine);
    }
    ~Tiles() {
        if (before.palette == 0)
            release_tiles();
        else
            load_tile_config(before);
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

  private:
    TileConfig before;
};

// out (16 or 32, 32) = or += left (., inner) right (inner, 32), in words; strides count words (and floats).
// BYTES: a word is four bytes, with sign in the left matrix and without in the right one, and out holds whole numbers.
template <bool TWO_ROWS, bool BYTES = false>
static inline void tile_product(const uint32_t* left, int64_t left_row, const uint32_t* right, int64_t right_row,
                                int64_t inner, float* out, int64_t out_row, bool adds) {
#define DOT(sum, left, right)                     \
    if (BYTES) { TILE_DOT_BYTES(sum, left, right); } \
    else { TILE_DOT(sum, left, right); }
    float* low = out + 16 * out_row;
    const uint32_t* left_low = left + 16 * left_row;
    if (adds) {
        TILE_LOAD(0, out, out_row * 4);
        TILE_LOAD(1, out + 16, out_row * 4);
        if (TWO_ROWS) {
            TILE_LOAD(2, low, out_row * 4);
            TILE_LOAD(3, low + 16, out_row * 4);
        }
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (int64_t k = 0; k < inner; k += 16) {
        TILE_LOAD(4, left + k, left_row * 4);
        TILE_LOAD(6, right + k * right_row, right_row * 4);
        TILE_LOAD(7, right + k * right_row + 16, right_row * 4);
        DOT(0, 4, 6);
        DOT(1, 4, 7);
        if (TWO_ROWS) {
            TILE_LOAD(5, left_low + k, left_row * 4);
            DOT(2, 5, 6);
            DOT(3, 5, 7);
        }
    }
    TILE_STORE(0, out, out_row * 4);
    TILE_STORE(1, out + 16, out_row * 4);
    if (TWO_ROWS) {
        TILE_STORE(2, low, out_row * 4);
        TILE_STORE(3, low + 16, out_row * 4);
    }
#undef DOT
}

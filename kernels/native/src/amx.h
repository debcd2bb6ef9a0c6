/* AMX tiles: 0 to 3 accumulate, 4 and 5 hold rows, 6 and 7 hold 16 lines of pairs. */
#ifndef EXPERTMESH_AMX_H
#define EXPERTMESH_AMX_H

#include "common.h"

typedef struct {
    uint8_t palette, start_row;
    uint8_t reserved[14];
    uint16_t bytes_a_row[16];
    uint8_t rows[16];
} __attribute__((packed)) TileConfig;

/* Rows of the tiles 0, 2, 4 and of 1, 3, 5. A tile's rows do not affect each other. */
INLINE void configure_tiles(int even_rows, int odd_rows) {
    TileConfig config __attribute__((aligned(64)));
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        config.bytes_a_row[tile] = 64;
        config.rows[tile] = (uint8_t)(tile >= 6 ? 16 : tile % 2 ? odd_rows : even_rows);
    }
    _tile_loadconfig(&config);
}

#endif

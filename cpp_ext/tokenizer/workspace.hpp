// Memory that encoding writes to. One call at a time may use it.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "tokenizer/linear_bpe.hpp"
#include "tokenizer/piece_cache.hpp"

namespace qwenvl {

struct Workspace {
    PieceCache cache;
    LinearBpe::OpenPlaces open;
};

// Workspaces stay with their tokenizer, so that the next call on any thread finds a warm cache. There are as many as
// calls have run at the same time.
class WorkspacePool {
public:
    class Lease {
    public:
        explicit Lease(WorkspacePool& pool) : pool_(pool), workspace_(pool.take()) {}
        ~Lease() { pool_.put(std::move(workspace_)); }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;

        Workspace& operator*() const { return *workspace_; }

    private:
        WorkspacePool& pool_;
        std::unique_ptr<Workspace> workspace_;
    };

private:
    std::unique_ptr<Workspace> take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (free_.empty()) {
            free_.reserve(++made_);  // so that putting it back cannot throw
            return std::make_unique<Workspace>();
        }
        std::unique_ptr<Workspace> workspace = std::move(free_.back());
        free_.pop_back();
        return workspace;
    }

    void put(std::unique_ptr<Workspace> workspace) {
        const std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(std::move(workspace));
    }

    std::mutex mutex_;
    std::vector<std::unique_ptr<Workspace>> free_;
    std::size_t made_ = 0;
};

}  // namespace qwenvl
